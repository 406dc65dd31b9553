"""Rules that tell the kinds of failures apart, whether to repeat a call, and what to tell the user.

A failure is classified by its status, its codes and the shape of its body before its wording. `RULES` is tried in
order; the first rule that matches decides. The wordings are those of real servers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from app.domain.external.llm import FailureKind
from app.infrastructure.llm.server_error import ServerError

STATUS_OF_CODE = {
    "invalid_request_error": 400,
    "invalid_api_key": 401,
    "bad_request": 400,
    "badrequesterror": 400,
    "invalid_argument": 400,
    "failed_precondition": 400,
    "validation_error": 422,
    "authentication_error": 401,
    "unauthenticated": 401,
    "unauthorized": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "not_found": 404,
    "notfounderror": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "resource_exhausted": 429,
    "overloaded_error": 529,
    "unavailable": 503,
}
"""Statuses of errors inside a stream, which have none, by their code or type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way to recognize a kind of failure.

    A rule matches if the status is one of its `statuses` and, where it has any of `codes`, `text` and `test`, one of
    these matches too.
    """

    kind: FailureKind
    headline: str
    """Text for the user. `{Server}`, `{server}`, `{model}`, `{status}` and `{reason}` are replaced."""
    statuses: frozenset[int] | None = None
    """None: every status."""
    codes: re.Pattern[str] | None = None
    text: re.Pattern[str] | None = None
    test: Callable[[ServerError], bool] | None = None
    waiting: str = ""
    """Text for the user while the call waits to be repeated. Empty: the failure is final."""
    retries: int | None = None
    """Maximum number of retries; None: as many as the patience allows."""

    def matches(self, status: int, error: ServerError) -> bool:
        """Return whether the failure is of this kind."""
        if self.statuses is not None and status not in self.statuses:
            return False
        if self.codes is None and self.text is None and self.test is None:
            return True
        return (
            (self.codes is not None and self.codes.search(error.code_text) is not None)
            or (self.text is not None and self.text.search(error.text) is not None)
            or (self.test is not None and self.test(error))
        )


_OUTPUT_LIMIT = re.compile(
    r"(?<!\+ )(?<!\+ `)max_?(?:completion_?|output_?|new_?)?tokens\b.{0,90}?(?:too (?:large|high|big)|must be|should be"
    r"|at most|less than|greater than|> ?\d|range|exceeds the|not exceed|cannot exceed|larger than|out of"
    r"|exceeds (?:model|max))"
    r"|range of max_?tokens|maximum tokens you requested exceeds",
    re.DOTALL,
)
_INPUT_TOO = re.compile(r"\binputs?\b.{0,40}max_\w*tokens|decrease input|reduce the length", re.DOTALL)
_INPUT_TOKENS = re.compile(r"has (\d+) input tokens")
_MAX_OUTPUT = (
    re.compile(r"(?:at most|<=|less than or equal to|up to|not exceed|lower than|limit of|limit is)\W{0,3}(\d+)"),
    re.compile(r"[\[(]\d+, ?(\d+)(?=[\])])"),
    re.compile(r"(?:between|from) \d+ (?:\(inclusive\) )?(?:and|to) (\d+)"),
    re.compile(r"> ?(\d+)"),
    re.compile(r"maximum (?:value )?(?:is |of |for \W?\w+\W? is |allowed \D{0,40})?(\d+)"),
    re.compile(r"less than \W?(\d+)"),
)
"""The largest limit of a reply's length that a refusal names; the first pattern that matches counts."""

_CONTEXT_LIMIT = (
    re.compile(r"(?<!\d)\d{3,} ?/ ?(\d{3,})"),
    re.compile(r"\d\s*(?:tokens )?> ?(\d[\d,_]*)"),
    re.compile(
        r"(?:(?:context|prompt|input|model|sequence)[ _](?:length|window|size|limit)|(?:token|tokens|input) limit|n_ctx"
        r"|max_\w*len\w*)(?! (?:exceeded )?by\b)[^\d.]{0,40}?(\d[\d,_]*+)(?! (?:tokens )?exceed)"
    ),
    re.compile(r"\[\d+, ?(\d[\d,_]*)\]"),
    re.compile(
        r"(?:allowed \(|must be <= ?|cannot exceed |not exceed |only supports up to |with |max size: |limit of "
        r"|limit is |limit for this model is |limit:? |maximum (?:\w+ ){0,3}of )(\d[\d,_]*)"
    ),
)
"""The size of the context window that a refusal names, in the same way."""

_TOO_LONG = re.compile(
    r"context.{0,2}(?:length|window|size|limit|overflow)|maximum context|exceed_context|context_exceeded"
    r"|\b(?:prompt|inputs?|request|conversation|messages?|query|text|history|sequence)\b[^.:]{0,40}"
    r"\btoo (?:long|large|big|many)\b|too many (?:input |prompt |total )*(?:tokens|text bytes|characters)"
    r"|reduce (?:the|your) (?:length|size|message|prompt|input)|range of input length|decrease input"
    r"|input token count|(?:prompt|input) tokens? exceed|must be <= ?\d"
    r"|\b(?:prompts?|inputs?|messages?|request|tokens?|length|size)\b[^.]{0,80}\b(?:exceed\w*|longer than|greater than"
    r"|(?:more|larger|less|fewer) than|over)[^.]{0,60}\b(?:tokens?|context|length|limit|maximum|window|max|\d{4,})"
    r"|exceeds? the max\w* (?:token|context|input|prompt)"
    r"|maximum (?:prompt|input|model|sequence) length|(?:prompt|input|model|sequence) length (?:limit|exceed)"
    r"|tokens to keep|trying to keep the first|messages resulted in \d|token limit exceeded|entity too large"
    r"|payload too large|body too large|超长|长度超过|超过.{0,12}(?:长度|上下文)|输入过长"
)
_CONTEXT_HEADLINE = (
    "The conversation is too long for the model {model}: use a model with a larger context (MODEL_NAME) or start a new "
    "session."
)
_CREDIT_HEADLINE = "The account of API_KEY has no credit left at {server}: add credit or use another key."
_KEY_HEADLINE = "{Server} refused the API key (API_KEY): it is wrong, expired or for another server."
_MODEL_HEADLINE = "{Server} does not know the model {model}: check MODEL_NAME and API_BASE."
_MONEY = r"(?:credits?|balance|funds|billing|payments?|spend\w*|invoices?)"

_REFUSALS = frozenset({0, 400, 403, 404, 409, 412, 422, 424, 500, 502})
"""Statuses of a refused request, some of them from gateways that report such a refusal as a failure."""


def _is_output_limit(error: ServerError) -> bool:
    """Return whether the limit of the reply's length is refused, and not the length of the prompt."""
    if not _OUTPUT_LIMIT.search(error.text) or _INPUT_TOO.search(error.text):
        return False
    # A prompt that leaves no room for a reply of any length is too long, whatever the server calls it.
    window, prompt = parse_context_limit(error.text), _INPUT_TOKENS.search(error.text)
    return not (window and prompt and "context" in error.text and int(prompt[1]) > window // 2)


def _is_long_content(error: ServerError) -> bool:
    """Return whether a text of a message is too long, and not an id or a description."""
    fields = " ".join(error.parameters)
    return "string_above_max_length" in error.code_text and (not fields or fields.endswith("content"))


RULES = (
    Rule(
        kind="malformed",
        statuses=_REFUSALS,
        codes=re.compile(
            r"tool_use_failed|json_validate_failed|output_parse_failed|malformed|unexpected_tool|modelerrorexception"
            r"|missing_thought"
        ),
        text=re.compile(
            r"failed_generation|tool call validation failed|fail\w* to (?:parse|call|generate|validate)"
            r"(?![^.]{0,30}\b(?:request|body|payload)\b)[^.]{0,20}\b(?:tools?|functions?|fc|json)\b"
            r"|failed to parse (?:input|output|the model)|unable to parse tool"
            r"|error (?:in )?parsing (?:the )?(?:tool|function)|(?:tool|function) calls? (?:could not|cannot) be parsed"
            r"|invalid (?:tool|function) call|invalid sequence as part of tooluse"
            r"|model (?:produced|generated) (?:invalid|malformed|output that could)"
            r"|attempted to call (?:tool|function)|unexpected tokens remaining in message header"
            r"|xml syntax error on line|harmonyerror"
            r"|invalid (?:function|tool) call(?! id)|not a valid (?:function|tool) call"
            r"|(?:could not|cannot|unable to) parse [^.]{0,30}(?:function|tool)"
        ),
        test=lambda error: bool(error.generated),
        headline="The model {model} wrote a tool call that {server} could not read.",
    ),
    Rule(
        kind="filter",
        statuses=frozenset({0, 400, 403, 422, 451, 500}),
        codes=re.compile(
            r"content_?filter|content_policy|content_violation|responsibleaipolicy|data_?inspection|moderation|\b1301\b"
            r"|safety|sensitive|prohibited_content|guardrail"
        ),
        text=re.compile(
            r"content[ _](?:management |usage )?(?:policy|filter)|moderation|flagged|safety (?:system|filter|settings)"
            r"|inappropriate content|content exists risk|high risk|敏感|违规"
            r"|violat\w+ [^.]{0,40}(?:polic|guideline|terms)"
        ),
        headline="{Server} refused this content: rephrase the request.",
    ),
    Rule(kind="credit", statuses=frozenset({402}), headline=_CREDIT_HEADLINE),
    Rule(
        kind="credit",
        codes=re.compile(
            r"insufficient_?(?:quota|balance|credit|fund)|billing|arrearage|exceeded_current_quota|payment_required"
            r"|credit|\b1113\b"
        ),
        headline=_CREDIT_HEADLINE,
    ),
    Rule(
        kind="credit",
        statuses=frozenset({0, 400, 401, 403, 412, 429, 500}),
        text=re.compile(
            r"\b(?:insufficient|no|low|not enough|out of|exhausted|used all|negative|add|required?|overdue|unpaid"
            rf"|past due|reach\w+)\b[^.]{{0,40}}\b{_MONEY}\b|\b{_MONEY}\b[^.]{{0,40}}\b(?:insufficient|too low"
            r"|exhausted|exceeded|overdue|depleted|used up|r[au]n out|not enough|unpaid|reached|negative|required)\b"
            r"|check your plan and billing|reached your specified api usage limits|in good standing"
            r"|(?:insufficient|no remaining) quota|余额|欠费|额度不足"
        ),
        headline=_CREDIT_HEADLINE,
    ),
    Rule(
        kind="context",
        statuses=frozenset({429}),
        text=re.compile(r"request (?:body |is )?too large|must be reduced|context.length|maximum context"),
        headline=_CONTEXT_HEADLINE,
    ),
    Rule(
        kind="overloaded",
        statuses=frozenset({429}),
        codes=re.compile(r"overload"),
        headline="{Server} is overloaded{reason}. Try again later.",
        waiting="The model's server is overloaded{reason}; trying again",
    ),
    Rule(
        kind="rate_limit",
        statuses=frozenset({429}),
        headline="{Server} limits our requests{reason}. Try again later.",
        waiting="The model's server limits requests{reason}; trying again",
    ),
    Rule(
        kind="rate_limit",
        statuses=frozenset({0, 400, 403, 500, 502, 503, 529}),
        codes=re.compile(r"rate_?limit|throttl|too_?many_?requests|resource_exhausted"),
        text=re.compile(r"rate.?limit|too many requests|throttl|请求过于频繁"),
        headline="{Server} limits our requests{reason}. Try again later.",
        waiting="The model's server limits requests{reason}; trying again",
    ),
    Rule(
        kind="parameter",
        statuses=_REFUSALS,
        test=_is_output_limit,
        headline="{Server} refused the maximum length of the reply: lower MAX_TOKENS.",
    ),
    Rule(
        kind="context",
        statuses=_REFUSALS | {413},
        codes=re.compile(
            r"context_|exceed_context|prompt_tokens_exceeded|tokens_limit_reached|request_too_large|\b1261\b"
        ),
        text=_TOO_LONG,
        test=_is_long_content,
        headline=_CONTEXT_HEADLINE,
    ),
    Rule(kind="context", statuses=frozenset({413}), headline=_CONTEXT_HEADLINE),
    Rule(kind="auth", statuses=frozenset({401}), headline=_KEY_HEADLINE),
    Rule(
        kind="auth",
        statuses=frozenset({0, 400, 403, 404, 422, 500, 502}),
        codes=re.compile(r"invalid_?api_?key|api_key_invalid|authentication|unauthenticated|unauthorized"),
        text=re.compile(
            r"(?:missing|no) (?:bearer|auth)|(?:incorrect|invalid|expired|missing|no|wrong|unknown) (?:api|auth\w*"
            r"|access)[ _-]?(?:key|token|credential)|api[ _-]?key (?:\w+ ){0,2}(?:not valid|invalid|expired|missing"
            r"|incorrect|not found)"
        ),
        headline=_KEY_HEADLINE,
    ),
    Rule(
        kind="request",
        statuses=frozenset({0, 400, 403, 451}),
        text=re.compile(r"\bcountry|\bregions?\b|territory|location (?:is )?not supported|unsupported_location"),
        headline="{Server} does not serve your country or region: use another server (API_BASE).",
    ),
    Rule(
        kind="request",
        statuses=frozenset({403, 406, 418, 451}),
        text=re.compile(
            r"error code:? 1\d\d\d|cloudflare|firewall|\bwaf\b|\bproxy|captcha|attention required"
            r"|request (?:was )?blocked|\bip (?:address|is|has)|\bvpn\b"
        ),
        test=lambda error: error.is_page,
        headline="A proxy or firewall in front of {server} refuses access{reason}: check API_BASE and the network.",
    ),
    Rule(
        kind="request",
        statuses=_REFUSALS | {501},
        text=re.compile(
            r"(?:not|n't) support (?:the )?(?:\w+ )?(?:tools?|functions?)\b"
            r"|(?:tools?|tool use|tool calling|function calling) (?:is |are )?(?:not supported|not enabled"
            r"|unsupported)|found that support tool|requires --jinja"
            r"|requires --enable-auto-tool-choice"
        ),
        headline="The model {model} cannot call tools at {server}: use another model (MODEL_NAME) or enable tool calls "
        "at the server.",
    ),
    Rule(kind="request", statuses=frozenset({404, 405}), headline=_MODEL_HEADLINE),
    Rule(
        kind="request",
        statuses=frozenset({0, 400, 403, 422, 500, 503}),
        codes=re.compile(r"model_?not_?(?:found|exist)|unknown_model|invalid_model"),
        text=re.compile(
            r"(?:unknown|invalid|no such) model\b(?! output)|\bmodel\b[^.]{0,80}\b(?:not found|not exist|not loaded)"
            r"|no available channel|not a valid model"
        ),
        headline=_MODEL_HEADLINE,
    ),
    Rule(
        kind="overloaded",
        codes=re.compile(r"overload|unavailable|capacity|server_?busy|model_loading"),
        text=re.compile(
            r"overload|(?:over|at|exceeded|out of|enough|full)\b.{0,20} capacity|capacity exceeded|server is busy"
            r"|(?:loading|warming up)\b.{0,20}\bmodel|model\b.{0,60}\b(?:is (?:currently )?loading|not ready)"
            r"|(?:currently|temporarily) unavailable"
        ),
        headline="{Server} is overloaded or loads the model{reason}. Try again later.",
        waiting="The model's server is overloaded or loads the model{reason}; trying again",
    ),
    Rule(
        kind="auth",
        statuses=frozenset({403, 407}),
        headline="{Server} refused access{reason}: the key (API_KEY) may not use the model {model}, or a proxy refuses "
        "the request.",
    ),
    Rule(
        kind="overloaded",
        statuses=frozenset({502, 503, 504, 521, 522, 523, 524, 529}),
        headline="{Server} failed{reason}. Try again later.",
        waiting="The model's server is not ready{reason}; trying again",
    ),
    Rule(
        kind="request",
        statuses=frozenset({*range(400, 500), 501, 505}) - {408, 409, 425, 499},
        headline="{Server} refused the request{reason}.",
    ),
    Rule(
        kind="other",
        headline="{Server} failed{reason}. Try again later.",
        waiting="The model's server failed{reason}; trying again",
        retries=4,
    ),
)


def rule_of(status: int, error: ServerError, *, has_wait: bool) -> Rule:
    """Return the rule for a failure. `has_wait`: the server says when to try again."""
    # Some servers mention plan and billing at every rate limit. A limit that ends is no lack of credit.
    is_limit = status == 429 and (has_wait or "resource_exhausted" in error.code_text)
    matching = (rule for rule in RULES if rule.matches(status, error))
    return next(rule for rule in matching if not (is_limit and rule.kind == "credit" and rule.codes is None))


def parse_context_limit(text: str) -> int | None:
    """Return the size of the context window that a refusal names, in tokens."""
    numbers = (_number(found) for pattern in _CONTEXT_LIMIT for found in pattern.finditer(text))
    return next((number for number in numbers if 256 <= number < 100_000_000), None)


def parse_output_limit(text: str, sent: int) -> int | None:
    """Return the largest length of a reply that a refusal of the length `sent` names, in tokens."""
    window = parse_context_limit(text) if "context" in text else None
    if window and window // 2 < sent:
        return window // 2
    for pattern in _MAX_OUTPUT:
        for found in pattern.finditer(text):
            # The end of a range may not belong to it.
            is_open = re.match(r"less than(?! or)", found[0]) or re.match(r"\)| \(exclusive", text[found.end() :])
            number = _number(found) - bool(is_open)
            if 16 <= number < sent:
                return number
    return None


def _number(found: re.Match[str]) -> int:
    return int(re.sub(r"\D", "", found[1]))

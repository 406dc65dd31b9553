"""Learning from a server's refusals which parameters it takes.

Only what the server itself says counts. The parts of its error that repeat the request are removed before (see
`server_error`), because they name every parameter.
"""

import re
from dataclasses import replace

from app.infrastructure.llm.failure_rules import parse_output_limit
from app.infrastructure.llm.failures import ModelCallError
from app.infrastructure.llm.request_encoder import Dialect

MIN_OUTPUT_LIMIT = 256
"""Smallest limit of a reply's length, in tokens, that is lowered after a refusal."""

_STATUSES = (0, 400, 422, 500, 501)

_UNSUPPORTED = re.compile(
    r"unsupported|not (?:be )?support|n't support|only the default|not permitted|not allowed|deprecated|unknown"
    r"|unrecognized|unexpected|extra (?:input|field)|extra_forbidden|additional propert|not recognized|please remove"
    r"|invalid (?:parameter|argument|field|property)"
)
_ONE_TEMPERATURE = re.compile(
    r"only \d(?:\.\d+)? is allowed|only be set to|fixed (?:at|to) \d|temperature ?=+ ?1\b"
    r"|must be (?:exactly |set to |equal to )?1(?!\.?\d)"
)
_SINGLE_CALLS = re.compile(
    r"single tool.?calls?|only (?:supports? )?(?:one|1) (?:tool|function).?call"
    r"|(?:multiple|parallel) (?:tool|function).?calls?\b.{0,40}(?:not (?:yet )?support|unsupported|not allowed)"
)
_PROVIDER_FIELDS = re.compile(
    r"\breasoning(?:_content|_details|_text)?\b|extra_content|thought_signature|thinking_blocks|provider_specific_fields"
)
_PICTURES = re.compile(r"\bimages?\b|image_url|multi-?modal|\bvision\b|mmproj")
_PICTURE_STATUSES = (400, 404, 415, 422)
"""Statuses of a refusal of pictures for any reason: one picture that a server does not take would end its session."""
_REQUIRED = re.compile(r"missing|required|must be (?:passed|sent|present|included|provided)|must (?:have|contain)")


def learn(failure: ModelCallError, *, sent: Dialect, known: Dialect, limit: int) -> Dialect | None:
    """Return the dialect without what the server refused, or None if `failure` is no refusal of a parameter.

    Args:
        failure: The failure of the request.
        sent: Dialect of the request.
        known: What is known now; other requests may have been refused in the meantime.
        limit: Maximum length of the reply that was sent, in tokens.
    """
    if failure.kind not in ("parameter", "request", "other"):
        return None
    text = failure.server.text
    is_unsupported = _UNSUPPORTED.search(text) is not None
    if sent.pictures and _PICTURES.search(text) and (failure.status in _PICTURE_STATUSES or is_unsupported):
        return replace(known, pictures=False)
    if failure.status not in _STATUSES:
        return None
    if failure.kind == "parameter":
        if limit <= MIN_OUTPUT_LIMIT:
            return None
        lower = parse_output_limit(text, limit) or max(limit // 2, MIN_OUTPUT_LIMIT)
        return replace(known, output_limit=min(lower, known.output_limit or lower))
    if sent.usage_in_stream and ("stream_options" in text or "include_usage" in text):
        return replace(known, usage_in_stream=False)
    if not sent.completion_limit and "max_completion_tokens" in text and is_unsupported:
        return replace(known, completion_limit=True)
    if sent.temperature and "temperature" in text and (is_unsupported or _ONE_TEMPERATURE.search(text)):
        return replace(known, temperature=False)
    if sent.parallel_calls and _SINGLE_CALLS.search(text):
        return replace(known, parallel_calls=False)
    is_field = is_unsupported and _PROVIDER_FIELDS.search(text) is not None and not _REQUIRED.search(text)
    return replace(known, provider_fields=False) if sent.provider_fields and is_field else None

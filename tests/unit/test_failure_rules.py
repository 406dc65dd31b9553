"""Errors of real model servers by their wording: their kind, and the parameter that is learnt from them.

`tests/contract/llm/test_server_errors.py` tests the most usual ones over HTTP.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.infrastructure.llm.failure_rules import parse_context_limit, parse_output_limit
from app.infrastructure.llm.failures import FailureClassifier, ModelCallError
from app.infrastructure.llm.refusals import learn
from app.infrastructure.llm.request_encoder import Dialect

CASES = [orjson.loads(line) for line in (Path(__file__).parent / "golden" / "server_errors.jsonl").open()]
"""Each has the `status` and `body` of an error, and its `kind` or the field of the dialect that is `learnt`."""

FAILURES = FailureClassifier(base_url="https://host/v1", model="m", api_key="sk-abcdefgh12345678")


def classify(case: dict[str, Any]) -> ModelCallError:
    """Return the failure of a case."""
    body = case["body"].encode() if isinstance(case["body"], str) else orjson.dumps(case["body"])
    return FAILURES.from_status(case["status"], {}, body, now=0)


@pytest.mark.parametrize("case", [case for case in CASES if "kind" in case], ids=lambda case: str(case["body"])[:100])
def test_error_of_a_real_server_has_its_kind(case: dict[str, Any]) -> None:
    assert classify(case).kind == case["kind"]


@pytest.mark.parametrize("case", [case for case in CASES if "learnt" in case], ids=lambda case: str(case["body"])[:100])
def test_parameter_is_learnt_only_from_its_refusal(case: dict[str, Any]) -> None:
    known = Dialect()
    learnt = learn(classify(case), sent=known, known=known, limit=2_000)
    before, after = asdict(known), asdict(learnt or known)
    assert [name for name in before if before[name] != after[name]] == ([case["learnt"]] if case["learnt"] else [])


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("Token count exceeds limit: 9000/8192", 8192),
        ("prompt length 9000 exceeds max_model_len 8192", 8192),
        ("Your request contains 9,000 tokens, over the model's limit of 8,192", 8192),
        ("prompt too long; exceeded max context length by 5000 tokens", None),
        ("messages too long: 500 > 40", None),
    ],
)
def test_size_of_the_window_is_read_from_the_text(text: str, limit: int | None) -> None:
    assert parse_context_limit(text.lower()) == limit


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("the supported range is from 1 (inclusive) to 65537 (exclusive)", 65_536),
        ("max_tokens must be less than 4096", 4095),
        ("max_tokens should be less than or equal to 4096", 4096),
        ("should be in [1, 8193)", 8192),
        ("should be in (0, 8192]", 8192),
        ("max_tokens is too large: 100000", None),
    ],
)
def test_largest_length_of_a_reply_is_read_from_the_text(text: str, limit: int | None) -> None:
    assert parse_output_limit(text, 100_000) == limit


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "x", "retry_after": "1" * 1_000_000 + "x"}},
        {"detail": [{"loc": ["a" * 1_000_000], "msg": "a" * 1_000_000}]},
        {"error": {"message": "a" * 1_000_000, "param": "a" * 1_000_000}},
        {"error": {"message": "raw='" * 1_000_000}},
    ],
    ids=["duration", "validation", "word", "generated"],
)
def test_hostile_error_is_classified_in_bounded_time(body: dict[str, Any]) -> None:
    start = time.process_time()
    failure = FAILURES.from_status(400, {}, orjson.dumps(body), now=0)
    assert time.process_time() - start < 5
    assert len(str(failure)) < 1_000


def test_masked_key_of_several_parts_is_hidden_whole() -> None:
    failure = FAILURES.from_status(400, {}, b'{"error": {"message": "bad abc**def**ghi"}}', now=0)
    assert "bad [key]" in str(failure)
    assert "ghi" not in str(failure)


def test_secrets_in_address_are_hidden_from_quote() -> None:
    failures = FailureClassifier(
        base_url="https://user:passw0rd@host/v1?sig=s3cret%2Bvalue&api-version=2024-10-21", model="m", api_key="none"
    )
    message = "no /v1?sig=s3cret%2Bvalue (s3cret+value) of user:passw0rd@host in api-version 2024-10-21"
    text = str(failures.from_status(400, {}, orjson.dumps({"error": {"message": message}}), now=0))
    assert "no /v1?sig=[key] ([key]) of user:[key]@[address] in api-version 2024-10-21" in text

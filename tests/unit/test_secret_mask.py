"""Secrets, paths and stack traces in what a model's server says."""

import base64
import urllib.parse
from collections.abc import Callable

import pytest

from app.infrastructure.llm.failures import FailureClassifier
from app.infrastructure.llm.secret_mask import ErrorTextMask
from tests.support.canaries import FORMS

KEY = "sk-proj-Qx7Ab/9+zZ_kL42mnTuVw"
SECRETS = ErrorTextMask([KEY])

ECHOES = {
    "plain": KEY,
    "upper case": KEY.upper(),
    "scheme in another case": f"BEARER {KEY}",
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 for addresses": base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("="),
    "base64 of the header": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "base64 of user and password": base64.b64encode(f"ab:{KEY}".encode()).decode(),
    "base64 in lines": "\n".join(base64.b64encode(f"a{KEY}".encode()).decode()[i : i + 10] for i in range(0, 42, 10)),
    "percent-encoded": urllib.parse.quote(KEY, safe=""),
    "percent-encoded twice": urllib.parse.quote(urllib.parse.quote(KEY, safe=""), safe=""),
    "percent-encoded throughout": "".join(f"%{byte:02X}" for byte in KEY.encode()),
    "hexadecimal": KEY.encode().hex(),
    "hexadecimal with colons": KEY.encode().hex(":").upper(),
    "JSON escapes": "".join(f"\\u{ord(char):04x}" for char in KEY),
    "HTML entities": "".join(f"&#{ord(char)};" for char in KEY),
    "reversed": KEY[::-1],
    "split": f"{KEY[:9]}' + '{KEY[9:17]}' + '{KEY[17:]}",
    "one character a line": "\n".join(KEY),
    "halves": f"it begins with {KEY[:12]} and ends with {KEY[-10:]}",
    "stars": f"{KEY[:7]}****{KEY[-4:]}",
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES.keys())
def test_repeated_key_is_masked_whatever_its_form(echo: str) -> None:
    masked = SECRETS.mask(f"Incorrect API key provided: {echo}. See https://host.example/keys for help.")
    assert masked.startswith("Incorrect API key provided: ")
    assert masked.endswith(" See https://host.example/keys for help.")
    rest = masked.removeprefix("Incorrect API key provided: ").removesuffix(" See https://host.example/keys for help.")
    words = rest.replace("it begins with", "").replace("and ends with", "").replace("BEARER", "").replace("[key]", "")
    assert words.strip(" .\n") == ""


@pytest.mark.parametrize("around", ["", "u", "u:"], ids=["first", "second", "third"])
def test_base64_of_key_in_any_alignment_leaves_no_character(around: str) -> None:
    for end in ("", "x", "xy"):
        echo = base64.b64encode(f"{around}{KEY}{end}".encode()).decode()
        assert SECRETS.mask(f"Bad: {echo}, sorry") == "Bad: [key], sorry"


@pytest.mark.parametrize("form", [*FORMS.values(), lambda text: text[::-1]], ids=[*FORMS, "reversed"])
def test_cut_form_of_key_leaves_less_than_8_characters_of_it(form: Callable[[str], str]) -> None:
    echo, parts = form(KEY), [form(KEY[start : start + 9]) for start in range(len(KEY) - 8)]
    for end in range(len(echo)):
        for text in (echo[:end], echo[end:]):
            masked = SECRETS.mask(f"Bad: {text}")
            assert not [part for part in parts if part in masked], masked


LEAKS = {
    "Python": 'Bad\nTraceback (most recent call last):\n  File "/srv/x.py", line 3, in f',
    "Python without its first line": 'Bad File "/srv/x.py", line 3, in f',
    "Java": "Bad\n\tat com.example.Server.handle(Server.java:12)",
    "JavaScript": "Bad\n    at Object.<anonymous> (/srv/x.js:1:2)",
    "Go": "Bad goroutine 7 [running]: main.main()",
    "path": "Bad /opt/conda/lib/python3.11/site-packages/vllm/x.py",
    "home": "Bad ~/srv/models.json",
    "Windows": r"Bad C:\Users\ann\srv\x.py",
    "file address": "Bad file:///srv/x/y.py",
}


@pytest.mark.parametrize("text", LEAKS.values(), ids=LEAKS.keys())
def test_paths_and_stack_traces_are_removed(text: str) -> None:
    masked = SECRETS.mask(text)
    assert masked.split()[0] == "Bad"
    assert not {"srv", "opt", "goroutine", "com.example"} & set(masked.replace("/", " ").replace("\\", " ").split())
    assert "Server" not in masked


@pytest.mark.parametrize(
    "text",
    [
        "The model gpt-5 does not exist. See https://host.example/docs/models/list",
        "Invalid URL (POST /v1/chat/completions)",
        "max_tokens must be at most 8192, and/or less",
        "Rate limit reached: 30,000 tokens per minute",
    ],
)
def test_texts_without_secrets_are_unchanged(text: str) -> None:
    assert SECRETS.mask(text) == text


def test_failure_of_a_call_quotes_no_encoded_key() -> None:
    failures = FailureClassifier(base_url="https://host/v1", model="m", api_key=KEY)
    body = f'{{"error": {{"message": "Refused {ECHOES["base64"]} in /srv/app/auth.py"}}}}'
    text = str(failures.from_status(401, {}, body.encode(), now=0))
    assert "Refused [key]" in text
    assert "/srv" not in text

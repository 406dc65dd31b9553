"""Logging writes one JSON object a line, with ids and without secrets."""

import io
import json
import logging
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest

from app.application.context import request_id, session_id
from app.infrastructure.logging import JsonLines, configure_logging
from app.infrastructure.secrets.known_secrets import KnownSecrets


class Lines:
    def __init__(self) -> None:
        self.text = io.StringIO()
        handler = logging.StreamHandler(self.text)
        handler.setFormatter(JsonLines())
        self.log = logging.Logger("test")
        self.log.addHandler(handler)

    @property
    def last(self) -> dict[str, Any]:
        return json.loads(self.text.getvalue().splitlines()[-1])


@pytest.fixture
def lines() -> Lines:
    return Lines()


def test_line_has_time_level_logger_and_event(lines: Lines) -> None:
    lines.log.info("request", extra={"status": 200, "ms": 1.5, "more": {"a": [None, True]}})
    line = lines.last
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO", "logger": "test", "event": "request", "status": 200, "ms": 1.5, "more": {"a": [None, True]}
    }  # fmt: skip


def test_line_has_bound_request_and_session_ids(lines: Lines) -> None:
    tokens = request_id.set("r1"), session_id.set("s1")
    lines.log.info("x")
    request_id.reset(tokens[0])
    session_id.reset(tokens[1])
    assert (lines.last["request_id"], lines.last["session_id"]) == ("r1", "s1")
    lines.log.info("x")
    assert "request_id" not in lines.last


def test_traceback_is_part_of_the_line(lines: Lines) -> None:
    try:
        raise RuntimeError("Bearer abc.def")
    except RuntimeError:
        lines.log.exception("failed\nbadly")
    assert "RuntimeError: Bearer ***" in lines.last["exception"]
    assert lines.text.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc.def-123, next", "Authorization: Bearer ***, next"),
        ("key sk-proj-abcdef123456 refused", "key sk-*** refused"),
        ("GET /v1?key=AIza123&cx=5", "GET /v1?key=***&cx=5"),
        ("?api_key=abc ?ticket=t1", "?api_key=*** ?ticket=***"),
        ("mongodb://anker:hunter2@db:27017/x", "mongodb://anker:***@db:27017/x"),
        ("http://127.0.0.1:8000/a@b", "http://127.0.0.1:8000/a@b"),
        ("the monkey has 3 tokens", "the monkey has 3 tokens"),
        ("AKIAIOSFODNN7EXAMPLE ghp_0123456789 xoxb-1-2345678", "AKIA*** ghp_*** xoxb-***"),
        ("jwt eyJhbGciOi.eyJzdWIi.c2ln end", "jwt eyJ*** end"),
        ('{"password": "hunter2", "n": 1}', '{"password": "***", "n": 1}'),
    ],
)
def test_secrets_in_messages_are_masked(lines: Lines, text: str, shown: str) -> None:
    lines.log.info("%s", text, extra={"detail": {"inner": [text]}})
    assert lines.last["event"] == shown
    assert lines.last["detail"] == {"inner": [shown]}


def test_own_secrets_are_masked_in_every_part_of_a_line() -> None:
    lines, secret = Lines(), "Zq-own-secret-of-the-service"
    lines.log.handlers[0].setFormatter(JsonLines(KnownSecrets({"API_KEY": secret})))
    try:
        raise KeyError(secret)
    except KeyError:
        lines.log.exception("%s", secret, extra={"file": f"/home/{secret}.txt", secret: {secret: [secret]}})
    assert secret not in lines.text.getvalue()
    lines.log.warning("stack", stack_info=True, extra={"encoded": b64encode(secret.encode()).decode()})
    assert b64encode(secret.encode()).decode()[:30] not in lines.text.getvalue()


def test_long_words_of_letters_and_digits_are_masked_in_texts_of_others(lines: Lines) -> None:
    canary = "c4n4ry0f5omebodyE15eWith40Characters0000"
    try:
        raise ValueError(f"input_value='{canary}'")
    except ValueError as error:
        lines.log.exception("it failed: %s", error, extra={"error": str(error)})
    logging.LoggerAdapter(lines.log).warning(canary)
    assert canary not in lines.text.getvalue()
    ours = logging.Logger("app.some")
    ours.addHandler(lines.log.handlers[0])
    ours.info("session %s", canary)
    assert lines.last["event"] == f"session {canary}"


def test_extras_with_secret_names_are_masked(lines: Lines) -> None:
    extra = {"api_key": "a", "sandbox_token": "b", "headers": {"Cookie": "c", "X": "d"}, "prompt_tokens": 5}
    lines.log.info("x", extra=extra)
    line = lines.last
    assert (line["api_key"], line["sandbox_token"]) == ("***", "***")
    assert line["headers"] == {"Cookie": "***", "X": "d"}
    assert line["prompt_tokens"] == 5


def test_unencodable_extras_are_logged_as_one_line(lines: Lines) -> None:
    lines.log.info("lone \ud83d", extra={"huge": 10**30, "odd": object, "keys": {1: {2}}, "bytes": b"\xff"})
    assert lines.last["huge"] == str(10**30)


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    app = logging.getLogger("app")
    before = root.handlers[:], root.level, app.level, logging.getLogger("uvicorn.access").disabled
    yield
    root.handlers[:], level, app_level, logging.getLogger("uvicorn.access").disabled = before
    root.setLevel(level)
    app.setLevel(app_level)


@pytest.mark.usefixtures("restored")
def test_libraries_log_warnings_and_uvicorn_uses_the_root_handler(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    logging.getLogger("httpx").info("GET https://example.com")
    logging.getLogger("openai._base_client").debug("Request options: headers")
    logging.getLogger("uvicorn.access").info("GET /")
    assert capsys.readouterr().err == ""
    logging.getLogger("uvicorn.error").info("Uvicorn running")
    logging.getLogger("uvicorn.error").warning("Started")
    logging.getLogger("httpx").warning("slow")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["Started", "slow"]
    configure_logging("DEBUG")
    for library in ("openai._base_client", "httpx", "docker", "a.new.library"):
        logging.getLogger(library).debug("Request options: headers")
        logging.getLogger(library).info("GET https://example.com/?q=words")
    logging.getLogger("app").debug("a message")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["a message"]

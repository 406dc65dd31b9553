"""Canaries: values that must not be seen anywhere, in the forms in which programs repeat a value."""

import base64
import codecs
import html
import io
import json
import secrets
import sqlite3
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from ahocorasick_rs import BytesAhoCorasick

from tests.fakes.scripted_openai import Answer, Asked, Call, Reply, Status

API = "/api/v1/sessions"


def _percent(text: str, digits: str = "%%%02X") -> str:
    return "".join(digits % byte for byte in text.encode())


FORMS: Mapping[str, Callable[[str], str]] = {
    "raw": lambda text: text,
    "upper": lambda text: text.encode().upper().decode(),
    "base64": lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
    "base64-url": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "base64-after-1": lambda text: base64.b64encode(b"u" + text.encode()).decode()[2:-4],
    "base64-after-2": lambda text: base64.b64encode(b"u:" + text.encode()).decode()[3:-4],
    "base64-lines": lambda text: base64.encodebytes(b"x" * 41 + text.encode())[56:].decode().rstrip("=\n"),
    "hex": lambda text: text.encode().hex(),
    "hex-upper": lambda text: text.encode().hex().upper(),
    "url": lambda text: quote(text, safe=""),
    "url-lower": lambda text: _percent(text, "%%%02x"),
    "url-all": _percent,
    "url-twice": lambda text: quote(_percent(text)),
    "json": lambda text: json.dumps(text)[1:-1],
    "json-twice": lambda text: json.dumps(json.dumps(text))[3:-3],
    "json-codes": lambda text: "".join(f"\\u{ord(char):04x}" for char in text),
    "json-slash": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "html": html.escape,
    "html-codes": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "html-hex": lambda text: "".join(f"&#x{ord(char):X};" for char in text),
    "wrapped": lambda text: text[:10] + "\r\n" + text[10:],
}
"""Functions that return a form of a text, by name."""


PART = 20
"""Number of characters of a secret that must not be seen. Masks find any 16, which an escape may begin or end."""


def all_forms(values: Iterable[str]) -> str:
    """Return every form of each value, one a line."""
    return "\n".join(form(value) for value in values for form in FORMS.values())


def found_in(data: bytes, values: Iterable[str]) -> list[str]:
    """Return the names of the forms of which `data` contains a part: as it is, or escaped as JSON text.

    A part has the length of `PART` characters of the value.
    """
    parts, automaton = _parts(tuple(values))
    return sorted({parts[index] for index, _, _ in automaton.find_matches_as_indexes(data)})


@lru_cache
def _parts(values: tuple[str, ...]) -> tuple[list[str], BytesAhoCorasick]:
    names: dict[bytes, str] = {}
    for value in values:
        for name, form in FORMS.items():
            for text in (form(value), json.dumps(form(value))[1:-1], json.dumps(form(value), ensure_ascii=False)[1:-1]):
                size = min(len(text), -(-PART * len(text) // len(value)))
                names |= {text[start : start + size].encode(): name for start in range(len(text) - size + 1)}
    return list(names.values()), BytesAhoCorasick(list(names))


def hidden(text: str) -> str:
    """Return `text` so that no mask recognises it. `REVEAL` in Python turns it back."""
    return codecs.encode(text, "rot13").encode().hex()


REVEAL = "import codecs\ndef reveal(text): return codecs.decode(bytes.fromhex(text).decode(), 'rot13')\n"
"""Python code that defines `reveal`, which undoes `hidden`."""


@dataclass
class Planted:
    """The canaries: the service's secrets, and secrets of a user."""

    own: dict[str, str]
    foreign: list[str]

    @classmethod
    def new(cls, *names: str) -> "Planted":
        """Make new ones. `names`: of the service's secrets, the first one of which is planted in all forms."""
        own = {name: f"{secrets.token_urlsafe(12)}-{secrets.token_urlsafe(24)}" for name in names}
        return cls(own, [f"sk-live-{secrets.token_hex(16)}", f"c4n4ry{secrets.token_hex(16)}", "AKIAIOSFODNN7EXAMPLE"])

    @property
    def key(self) -> str:
        """The first of the service's secrets."""
        return next(iter(self.own.values()))

    @property
    def text(self) -> str:
        """All forms of one of the service's secrets, the others as they are and in Base64, and the user's ones."""
        others = [form for value in self.own.values() for form in (value, base64.b64encode(value.encode()).decode())]
        return "\n".join([all_forms([self.key]), *others, *self.foreign])


class CanaryModel:
    """A script that plants the canaries in everything that a model writes and in everything that its tools return."""

    def __init__(self, planted: Planted, more: Sequence[Call] = (), program: str = "") -> None:
        """Create the script. `more`: further tool calls; `program`: what is executed first, with `text` and `key`."""
        key = planted.key
        code = (
            f"{REVEAL}import sys, time, os\ntext = reveal({hidden(planted.text)!r})\nkey = reveal({hidden(key)!r})\n"
            "open('found.txt', 'w').write(text)\nopen(key + '.canary', 'w').write(key)\nprint(text, flush=True)\n"
            "print('begin', key[:19], end='', sep='', flush=True)\ntime.sleep(0.3)\nprint(key[19:], flush=True)\n"
        )
        self._text = planted.text
        self._calls = [
            Call("file_write", {"file": "plant.py", "content": code + program}),
            Call("shell_exec", {"id": "main", "exec_dir": "~", "command": "python3 plant.py"}),
            Call("file_read", {"file": "found.txt"}),
            Call("file_find_by_name", {"path": "~", "glob": "*.canary"}),
            Call("file_find_in_content", {"file": "found.txt", "regex": ".*"}),
            Call("file_read", {"file": f"/nowhere/{key}"}),
            *more,
            Call("message_notify_user", {"text": self._text}),
            Call("no_such_function", {"text": self._text}),
            Call("shell_view", self._text),
            Call("shell_view", {"id": f"none-{key}"}),
        ]

    def __call__(self, asked: Asked) -> Answer:
        match asked.kind:
            case "planning" if any("fail now" in str(message["content"]) for message in asked.messages):
                return Status(status=400, body={"error": {"message": self._text}})
            case "planning":
                steps = [{"id": "1", "description": self._text}]
                plan = {"title": self._text[:150], "message": self._text, "goal": self._text, "steps": steps}
                return Reply(calls=[Call("create_plan", plan)], size=3)
            case "executing" if self._calls:
                return Reply(calls=[self._calls.pop(0)], text=self._text)
            case "executing":
                return Reply(calls=[Call("complete_step", {"success": True, "result": self._text})])
            case _:
                return Reply(text=f"{self._text}\nThat is all.", size=7)


async def bad_requests(client: httpx.AsyncClient, session: str, planted: Planted) -> AsyncIterator[bytes]:
    """Send requests with the canaries in every place, and yield the responses' bodies."""
    for value in (*planted.own.values(), *planted.foreign):
        bodies: list[tuple[str, str, Any]] = [
            ("POST", f"{API}/{session}/chat", {"message": "x", "model": value}),
            ("POST", f"{API}/{session}/chat", {value: value, "timestamp": value}),
            ("POST", f"{API}/{session}/file", {"file": f"/nowhere/{value}"}),
            ("POST", f"{API}/{session}/file", {"file": f"{value}\0"}),
            ("POST", f"{API}/{session}/shell", {"session_id": value}),
            ("PATCH", f"{API}/{session}/title", {"title": value}),
            ("PUT", API, {"title": value, "model": value}),
            ("GET", f"{API}/{value}?cursor={value}", None),
            ("GET", f"{API}?cursor={value}", None),
            ("GET", f"{API}/{session}/pictures/{value}", None),
            ("POST", f"{API}/{session}/control", {"action": value}),
            (value, f"/{value}", None),
        ]
        for method, path, body in bodies:
            # A client names its requests as it likes, to find them in the log: only our own secrets are masked there.
            request_id = planted.key if value in planted.foreign else value
            response = await client.request(method, path, json=body, headers={"X-Request-ID": request_id})
            yield response.content
        response = await client.get(API, headers={"Authorization": f"Bearer {value}x", "Cookie": value})
        yield response.content


def stored_by_sqlite(data: Path) -> bytes:
    """Return the bytes of the files of SQLite, and of every value in its tables."""
    parts = [path.read_bytes() for path in data.glob("anker.db*")]
    with sqlite3.connect(data / "anker.db") as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in connection.execute(f"SELECT * FROM {table}"):
                parts += [value if isinstance(value, bytes) else str(value).encode() for value in row]
    connection.close()
    return b"\n".join(parts)


async def use_service(client: httpx.AsyncClient, planted: Planted, session: str = "") -> dict[str, bytes]:
    """Use the service with the canaries wherever a client can send text, and return what it responds, by name.

    `session`: the id of the session to use; a new one if empty.
    """
    out: dict[str, bytes] = {}
    session = session or (await client.put(API, json={"title": planted.key})).json()["data"]["session_id"]
    for number, message in enumerate((planted.text, f"fail now {planted.text}")):
        body = {"message": message, "stream": True}
        headers = {"Idempotency-Key": f"{planted.key}{number}"}
        response = await client.post(f"{API}/{session}/chat", json=body, headers=headers, timeout=120)
        out[f"stream {number}"] = response.content
    for name, response in {
        "history": await client.get(f"{API}/{session}"),
        "list": await client.get(API),
        "shell": await client.post(f"{API}/{session}/shell", json={"session_id": "main"}),
        "file": await client.post(f"{API}/{session}/file", json={"file": "found.txt"}),
    }.items():
        assert response.status_code == 200, name
        out[name] = response.content
    out["failures"] = b"\n".join([body async for body in bad_requests(client, session, planted)])
    out["metrics"] = (await client.get("/metrics")).content
    out["export"] = _without_files((await client.get(f"{API}/{session}/export")).content)
    return out


def _without_files(archive: bytes) -> bytes:
    """Return the content of an export but for the files of the workspace, which are as the sandbox has them."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return b"\n".join(opened.read(name) for name in opened.namelist() if name.partition("/")[0] in _MASKED_ENTRIES)


_MASKED_ENTRIES = ("events.jsonl", "transcripts", "audit.jsonl", "versions.json")


def check_seen(out: Mapping[str, bytes], planted: Planted) -> None:
    """Check that none of the service's secrets is seen anywhere, and that the canaries came to where they were sent."""
    leaks = {place: found for place, data in out.items() if (found := found_in(data, planted.own.values()))}
    assert leaks == {}, leaks
    for place in ("stream 0", "history", "list", "shell", "file", "store", "model", "failures", "export"):
        assert b"***" in out[place], place
    for place in ("log", "metrics"):
        assert [value for value in planted.foreign if value.encode() in out[place]] == [], place
    for place in ("stream 0", "history", "shell", "file", "export"):
        assert all(value.encode() in out[place] for value in planted.foreign), place
    assert b"message_delta" in out["stream 0"]
    assert out["stream 0"].count(b'"status":"called"') >= 7, out["stream 0"]
    assert b'"success":true' in out["stream 0"], out["stream 0"]
    assert b"event: error" in out["stream 1"] and b"[key]" in out["stream 1"], out["stream 1"]

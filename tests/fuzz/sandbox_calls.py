"""Calls of the sandbox's file and shell API with odd paths, names and links."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx
from hypothesis import strategies as st

SECONDS = 30
"""Limit of a call in seconds: none of them may wait for anything."""

LINKS = {
    "l-root": "/",
    "l-up": "..",
    "l-loop": "l-loop",
    "l-none": "nowhere",
    "l-proc": "/proc/1/root",
    "l-self": "/proc/self",
    "l-fd": "/proc/self/fd",
    "l-environ": "/proc/1/environ",
    "l-mem": "/proc/thread-self/mem",
    "l-zero": "/dev/zero",
    "l-full": "/dev/full",
    "l-tty": "/dev/tty",
    "l-stdin": "/dev/stdin",
    "l-file": "plain.txt",
    "l-folder": "folder",
}
"""Symbolic links in the workspace, by name. The tests add links to their canaries."""

NAMES = (
    *("plain.txt", "folder/a.txt", "folder/inner/b.txt", "UPPER", "upper", "new\nline", "sp ace", "-rf"),
    *("e\u0301", "\u00e9"),  # the same letter in two forms
)
"""Files in the workspace."""

SETUP = """\
import os, socket
os.makedirs("folder/inner", exist_ok=True)
for name in NAMES:
    with open(name, "w") as file:
        file.write("plain text\\n" * 3)
with open(b"bad-\\xff\\xfe", "w") as file:
    file.write("x")
with open("hard", "w") as file:
    file.write("x")
os.path.exists("hard2") or os.link("hard", "hard2")
os.path.exists("fifo") or os.mkfifo("fifo")
os.path.exists("socket") or socket.socket(socket.AF_UNIX).bind("socket")
for name, target in LINKS.items():
    os.path.lexists(name) or os.symlink(target, name)
"""
"""Python program that fills the workspace; `NAMES` and `LINKS` are replaced by their values."""


def setup_program(links: dict[str, str]) -> str:
    return SETUP.replace("NAMES", repr(NAMES)).replace("LINKS", repr({**LINKS, **links}))


def _paths(places: tuple[str, ...], links: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Return paths that lead everywhere, and texts that are hardly paths."""
    starts = st.sampled_from(
        ("", "", "", "~/", "/", "./", "~", "$HOME/", "file:///", "/proc/self/root/", "/proc/1/root/")
    )
    parts = st.sampled_from(
        (
            *(
                "..",
                "..",
                ".",
                "",
                "plain.txt",
                "folder",
                "inner",
                "fifo",
                "socket",
                "hard2",
                "UPPER",
                "e\u0301",
                "\u00e9",
            ),
            *(*LINKS, *links),
            *(
                "new\nline",
                "sp ace",
                "-rf",
                "bad-\ufffd",
                "bad-\udcff",
                "a\0b",
                "x" * 255,
                "x" * 256,
                "x" * 4_200,
                "*",
                "%2e%2e",
            ),
            *(
                "proc",
                "self",
                "1",
                "fd",
                "0",
                "5",
                "environ",
                "mem",
                "maps",
                "task",
                "cwd",
                "exe",
                "dev",
                "shm",
                "etc",
                "shadow",
            ),
        )
    ) | st.text(max_size=6)
    made = st.builds(
        lambda start, each, end: start + "/".join(each) + end,
        starts,
        st.lists(parts, max_size=5),
        st.sampled_from(("", "", "/")),
    )
    beyond = st.builds(
        lambda place, each: "/".join((place, *each)), st.sampled_from(places), st.lists(parts, max_size=2)
    )
    plain = st.sampled_from((*NAMES, "new.txt", "~/folder/../plain.txt", "folder", "fifo", "socket", *LINKS, *links))
    below = st.builds("{}/{}".format, st.sampled_from((*LINKS, *links, "folder")), parts)
    return plain | plain | plain | below | made | beyond


@dataclass(frozen=True)
class Call:
    """A request to the sandbox."""

    path: str
    body: dict[str, Any] = field(default_factory=dict)
    raw: bytes | None = None

    def send(self, client: httpx.Client) -> httpx.Response:
        match self.path:
            case "/file/download":
                return client.get(self.path, params={"path": _encodable(self.body["path"])})
            case "/file/upload":
                data = {"path": _encodable(self.body["path"])}
                return client.post(self.path, data=data, files={"file": ("f", b"uploaded")})
            case _:
                content = self.raw if self.raw is not None else json.dumps(self.body).encode()
                return client.post(self.path, content=content)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def calls(places: tuple[str, ...], links: tuple[str, ...]) -> st.SearchStrategy[Call]:
    """Return calls with any paths. `places`: paths outside the workspace; `links`: names of links to them."""
    paths = _paths(places, links)
    texts = st.sampled_from(("", "text\n", "\ufeff\u00e9", "\0", "\r\n", "\ud800", "x" * 70_000)) | st.text(max_size=8)
    flags = st.sampled_from((None, True, False))
    numbers = st.sampled_from((None, None, None, None, 0, 1, 10**6, 2**63, -1))
    globs = (
        st.sampled_from(("*", "**", "**/*", "../*", "[", "{a,b}", "{1..999999999}", "**/environ", "*/" * 50, "/", "\\"))
        | paths
    )
    regexes = st.sampled_from(
        (".", "(a+)+$", "plain", "(", "\\", "[[:alpha:]]", "(?R)", "x{99999}", "^" * 2_000)
    ) | st.text(max_size=6)
    ids = st.sampled_from(("a", "../a", "/etc/passwd", "", "a\0", "\n", "x" * 5_000, "~", ".", "\ud800")) | st.text(
        max_size=5
    )
    encodings = st.sampled_from(
        (
            None,
            None,
            None,
            None,
            "utf-8",
            "utf-16",
            "rot13",
            "zip",
            "idna",
            "unicode_escape",
            "undefined",
            "../x",
            "utf-7",
        )
    )
    call = {
        "/file/read": {
            "file": paths,
            "start_line": numbers,
            "end_line": numbers,
            "start_char": numbers,
            "encoding": encodings,
        },
        "/file/write": {
            "file": paths,
            "content": texts,
            "append": flags,
            "leading_newline": flags,
            "encoding": encodings,
        },
        "/file/replace": {"file": paths, "old_str": texts, "new_str": texts, "view": flags},
        "/file/search": {"file": paths, "regex": regexes, "view": flags},
        "/file/find": {"path": paths, "glob": globs},
        "/file/list": {"path": paths},
        "/file/upload": {"path": paths},
        "/file/download": {"path": paths},
        "/shell/view": {"id": ids},
        "/shell/kill": {"id": ids},
        "/shell/wait": {
            "id": ids,
            "seconds": st.sampled_from((0, -1, None, 10**9, "x")).filter(lambda each: each is not None),
        },
        "/shell/write": {"id": ids, "input": st.sampled_from(("\x03", "", "\ud800")), "press_enter": flags},
    }
    kinds = [
        st.fixed_dictionaries(fields).map(lambda body, path=path: Call(path, _present(body)))
        for path, fields in call.items()
    ]
    # Starting a shell takes ten times as long as another call.
    kinds += kinds[:8]
    garbage = st.builds(
        lambda path, raw: Call(path, raw=raw),
        st.sampled_from(tuple(call)[:6]),
        st.binary(max_size=20)
        | st.sampled_from((b"[" * 5_000, b'{"file":' * 3_000, b'{"file":"\\ud800"}', b"null", b'{"file":1e999}')),
    ).filter(lambda each: each.path not in ("/file/upload", "/file/download"))
    return st.one_of(*kinds, garbage)


def _present(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


EXECUTIONS = st.builds(
    lambda shell_id, folder: Call("/shell/exec", {"id": shell_id, "exec_dir": folder, "command": "pwd"}),
    st.sampled_from(("a", "b", "../a", "\u00e9", "x" * 300)),
    st.sampled_from(
        (*LINKS, "", "folder", "fifo", "~", "/proc/self/cwd", "new\nline", "nowhere", "/root", "\0", "-rf", "e\u0301")
    ),
)
"""Commands in odd folders."""


def check(response: httpx.Response, secrets: tuple[bytes, ...]) -> None:
    """Check that a response is a whole one, no fault of the service, and without anything that is not the caller's."""
    assert response.status_code < 500, (response.status_code, response.text[:500])
    for secret in secrets:
        assert secret not in response.content, response.content[:500]
    if "json" in response.headers["content-type"]:
        assert set(response.json()) == {"success", "message", "data"}

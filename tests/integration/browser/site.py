"""A web site on loopback whose pages the tests write. `localhost` and `127.0.0.1` are two sites to a browser."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Page:
    """What is served under a path."""

    body: bytes
    kind: str = "text/html; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Site:
    """Serves `pages` by path; a function in their place writes the answer itself. Paths nobody wrote are a 404."""

    def __init__(self) -> None:
        self.pages: dict[str, Page | Answer] = {}
        self.asked: list[str] = []
        self.uploads: list[bytes] = []
        self.over = threading.Event()
        """Set at the end of a test: answers that never end wait for it."""
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def do_POST(self) -> None:
                site.uploads.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                site.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path: str = "/", *, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def html(self, body: str, path: str = "/", *, title: str = "Test", **rest: object) -> str:
        """Put a page under `path`; answers its URL."""
        text = f"<!doctype html><html><head><title>{title}</title></head><body>{body}</body></html>"
        self.pages[path] = Page(text.encode(), **rest)  # type: ignore[arg-type]
        return self.url(path)

    def clear(self) -> None:
        self.over.set()
        self.over = threading.Event()
        self.pages.clear()
        self.asked.clear()
        self.uploads.clear()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        page = self.pages.get(request.path.partition("?")[0], Page(b"<title>404</title>not here", status=404))
        try:
            if not isinstance(page, Page):
                page(request)
                return
            request.send_response(page.status)
            request.send_header("Content-Type", page.kind)
            request.send_header("Content-Length", str(len(page.body)))
            for name, value in page.headers.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(page.body)
        except OSError:
            pass  # the browser went away

    def never(self, first: bytes = b"", kind: str = "text/html; charset=utf-8") -> Answer:
        """An answer that begins with `first` and does not end; with nothing at first, not even headers come."""

        def answer(request: BaseHTTPRequestHandler) -> None:
            over = self.over
            if first:
                request.send_response(200)
                request.send_header("Content-Type", kind)
                request.end_headers()
                request.wfile.write(first)
                request.wfile.flush()
            over.wait(60)

        return answer

    def redirect(self, to: str) -> Page:
        return Page(b"", status=302, headers={"Location": to})

"""A web site on loopback whose pages the tests define. A browser treats `localhost` and `127.0.0.1` as two sites."""

import mimetypes
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MAX_RESPONSE_SECONDS = 60
"""Time in seconds after which a response that never ends is abandoned."""

Responder = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Page:
    """A response with a fixed body."""

    body: bytes
    kind: str = "text/html; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class LocalSite:
    """Serves `pages` by path; a function instead of a page writes the response itself. Other paths are 404."""

    def __init__(self) -> None:
        self.pages: dict[str, Page | Responder] = {}
        self.folders: dict[str, Path] = {}
        """Folders whose files are served, by the first part of the path."""
        self.requests: list[str] = []
        """Requested paths with their queries, in order."""
        self.uploads: list[bytes] = []
        """Bodies of POST requests."""
        self.released = threading.Event()
        """Set at the end of a test; responses that never end wait for it."""
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.respond(self)

            def do_POST(self) -> None:
                site.uploads.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                site.respond(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path: str = "/", *, host: str = "127.0.0.1") -> str:
        """Return the URL of `path`."""
        return f"http://{host}:{self.port}{path}"

    def html(self, body: str, path: str = "/", *, title: str = "Test", **options: object) -> str:
        """Serve an HTML page under `path` and return its URL; `options` are those of `Page`."""
        text = f"<!doctype html><html><head><title>{title}</title></head><body>{body}</body></html>"
        self.pages[path] = Page(text.encode(), **options)  # type: ignore[arg-type]
        return self.url(path)

    def clear(self) -> None:
        """End all responses and forget all pages and requests."""
        self.released.set()
        self.released = threading.Event()
        self.pages.clear()
        self.requests.clear()
        self.uploads.clear()

    def close(self) -> None:
        """Stop the server."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def respond(self, request: BaseHTTPRequestHandler) -> None:
        """Write the response to `request`."""
        self.requests.append(request.path)
        path = request.path.partition("?")[0]
        page = self.pages.get(path) or self._file(path) or Page(b"<title>404</title>not here", status=404)
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
            pass  # the browser closed the connection

    def _file(self, path: str) -> Page | None:
        _, first, *rest = path.split("/")
        file = self.folders.get(first, Path()).joinpath(*rest)
        if first not in self.folders or not file.is_file():
            return None
        return Page(file.read_bytes(), mimetypes.guess_type(path)[0] or "application/octet-stream")

    def endless(self, first: bytes = b"", kind: str = "text/html; charset=utf-8") -> Responder:
        """Return a responder that sends `first` and never ends; if `first` is empty, it sends not even headers."""

        def respond(request: BaseHTTPRequestHandler) -> None:
            released = self.released
            if first:
                request.send_response(200)
                request.send_header("Content-Type", kind)
                request.end_headers()
                request.wfile.write(first)
                request.wfile.flush()
            released.wait(MAX_RESPONSE_SECONDS)

        return respond

    def redirect(self, to: str) -> Page:
        """Return a redirect to the URL `to`."""
        return Page(b"", status=302, headers={"Location": to})

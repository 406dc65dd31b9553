"""The HTTP side of DevTools: lists of what can be driven, with addresses that lead through our own port."""

import http.client
import json

_SECONDS = 10.0
_ADDRESSES = ("webSocketDebuggerUrl", "devtoolsFrontendUrl")


def ask(port: int, method: str, target: str) -> tuple[int, bytes, str]:
    """Chromium's answer to `target` (`/json/…`): status, body, content type. Blocking. Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    try:
        connection.request(method, target, headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read(), response.headers.get("Content-Type", "application/json")
    except http.client.HTTPException as error:
        raise ConnectionError("not an answer of HTTP") from error
    finally:
        connection.close()


def readdressed(body: bytes, port: int, host: str) -> bytes:
    """`body` with addresses that lead through `host`, by which a client reached us. What is no JSON stays as it is."""
    try:
        found: object = json.loads(body)
    except ValueError:
        return body
    targets: list[object] = found if isinstance(found, list) else [found]  # pyright: ignore[reportUnknownVariableType]
    for target in targets:
        if isinstance(target, dict):
            _readdress(target, f"127.0.0.1:{port}/devtools/", f"{host}/cdp/devtools/")  # pyright: ignore[reportUnknownArgumentType]
    return json.dumps(found, ensure_ascii=False).encode()


def _readdress(target: dict[str, object], inner: str, outer: str) -> None:
    for name in _ADDRESSES:
        value = target.get(name)
        if isinstance(value, str):
            target[name] = value.replace(inner, outer)

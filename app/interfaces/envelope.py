"""The envelope around every JSON answer: `{"code", "msg", "data"}`."""

from collections.abc import Mapping

import orjson
from starlette.responses import Response

JSON = "application/json"

OPENING = b'{"code":0,"msg":"success","data":'
"""What a successful answer begins with; its data and `CLOSING` follow."""

CLOSING = b"}"


def success(data: object) -> Response:
    """`data`, anything that orjson can encode, as a successful answer."""
    return success_json(orjson.dumps(data))


def success_json(data: bytes) -> Response:
    """`data`, ready JSON, as a successful answer."""
    return Response(OPENING + data + CLOSING, media_type=JSON)


def failure(status: int, msg: str, *, headers: Mapping[str, str] | None = None) -> Response:
    """A failed answer: `code` is the HTTP status, `data` null."""
    body = orjson.dumps({"code": status, "msg": msg, "data": None})
    return Response(body, status_code=status, headers=headers, media_type=JSON)

"""The sandbox service as an ASGI application.

`create_app(settings)` wires the parts; `app.state.shells` is what must be closed at the end (its lifespan does it).
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from sandbox.auth import MIB, BearerAuth, BodyLimit
from sandbox.envelope import install_handlers
from sandbox.files.paths import Paths
from sandbox.routes_file import UPLOAD_BYTES, file_routes
from sandbox.routes_shell import shell_routes
from sandbox.routes_status import status_routes
from sandbox.settings import Settings
from sandbox.shell.manager import Shells

API = "/api/v1"
JSON_BYTES = 32 * MIB


def create_app(settings: Settings) -> FastAPI:
    """The application; needs no running event loop."""
    shells = Shells(settings)
    paths = Paths(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await shells.close()

    app = FastAPI(title="Anker sandbox", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.shells = shells
    install_handlers(app)
    app.include_router(shell_routes(shells, paths, settings), prefix=API)
    app.include_router(file_routes(paths), prefix=API)
    app.include_router(status_routes(shells), prefix=API)
    # The last one added is the first that a request meets.
    app.add_middleware(BodyLimit, default=JSON_BYTES, by_path={f"{API}/file/upload": UPLOAD_BYTES + MIB})
    app.add_middleware(BearerAuth, token=settings.token)
    return app

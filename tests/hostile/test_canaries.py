"""Canaries of the service's own secrets, planted wherever text comes in: none is seen where text goes out.

The service is the real one, with SQLite and a local sandbox. Browser, search engine and model are scripted. With real
stores and a real browser: `test_canaries_in_stores.py`, `tests/integration/docker_sessions/test_canaries.py`.
"""

from pathlib import Path

import httpx
import pytest

from app.domain.errors import BrowserFailure
from app.domain.external.search import SearchHit
from app.domain.models.browser import PageView
from app.main import create_app
from app.settings import Settings
from tests.fakes.fake_search import FakeSearch
from tests.fakes.memory_browser import MemoryBrowser, MemoryBrowsers
from tests.fakes.scripted_openai import Call, ScriptedOpenAI
from tests.support.canaries import CanaryModel, Planted, check_seen, stored_by_sqlite, use_service


class PlantedBrowsers(MemoryBrowsers):
    """Browsers with one page, which fail after it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    async def open(self, session_id: str) -> MemoryBrowser:
        browser = await super().open(session_id)
        if browser.calls:
            browser.failure = BrowserFailure(self._text)
        browser.pages = [PageView(url=f"http://x/?{self._text[:60]}", title=self._text[:60], text=self._text)]
        return browser


async def test_canaries_are_not_in_anything_that_goes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted = Planted.new("api_key", "google_search_api_key", "sandbox_token", "token")
    calls = [
        Call("browser_view", {}),
        Call("browser_navigate", {"url": f"http://127.0.0.1/{planted.key}"}),
        Call("browser_view", {}),
        Call("info_search_web", {"query": planted.key}),
    ]
    tokens = {"api_tokens": f"ann:{planted.own['token']}"}
    others = {name: planted.own[name] for name in ("api_key", "google_search_api_key", "sandbox_token")}
    engine = FakeSearch([SearchHit(title=planted.text[:99], link="http://x", snippet=planted.text)])
    with ScriptedOpenAI(CanaryModel(planted, calls)) as model:
        settings = Settings(
            _env_file=None,
            data_dir=tmp_path,
            api_base=model.url,
            sandbox_provider="local",
            log_level="DEBUG",
            **(tokens | others),  # type: ignore[arg-type]
        )  # type: ignore[call-arg]
        app = create_app(settings, browsers=PlantedBrowsers(planted.text), engine=engine)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            headers = {"Authorization": f"Bearer {planted.own['token']}"}
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
                out = await use_service(client, planted)
        out["model"] = b"\n".join(asked.raw for asked in model.asked)
    out |= {"log": capsys.readouterr().err.encode(), "store": stored_by_sqlite(tmp_path)}
    check_seen(out, planted)

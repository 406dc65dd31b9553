"""Editors and component libraries from npm, as pages that no one here wrote."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from app.domain.models.browser import PageView
from app.infrastructure.browser.session import SessionBrowser
from tests.integration.browser.local_site import LocalSite

SOURCE = Path(__file__).parent / "libraries"
"""Folder of the list of packages, and of the scripts that are bundled with them."""
CACHE = Path(__file__).parents[3] / ".cache" / "browser-libraries"
"""Folder in which the packages are installed and the bundles are built."""
BUNDLE = ("--bundle", "--minify", "--log-level=warning", "--outdir=built", "--jsx=transform")
DEFINED = ('--define:process.env.NODE_ENV="production"', "--define:global=globalThis")
INSTALL_SECONDS = 600
"""Time limit in seconds for installing the packages."""


def build_libraries() -> Path:
    """Install the packages and build the bundles, unless that was done before. Return their folder.

    Without npm, the test is skipped; in CI it fails.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may build them now
        _build()
    return CACHE


def _build() -> None:
    lockfile = SOURCE / "package-lock.json"
    if _is_changed("packages", lockfile.read_bytes()):
        npm = shutil.which("npm")
        if npm is None:
            assert os.environ.get("CI") != "true", "npm is not installed"
            pytest.skip("npm is not installed")
        for each in (lockfile, SOURCE / "package.json"):
            shutil.copy(each, CACHE)
        install = (npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
        subprocess.run(install, cwd=CACHE, check=True, capture_output=True, timeout=INSTALL_SECONDS)
        _mark_done("packages", lockfile.read_bytes())
    sources = sorted((SOURCE / "src").iterdir())
    content = lockfile.read_bytes() + b"".join(each.read_bytes() for each in sources)
    if _is_changed("bundles", content):
        shutil.rmtree(CACHE / "src", ignore_errors=True)
        shutil.copytree(SOURCE / "src", CACHE / "src")
        entries = [f"src/{each.name}" for each in sources]
        subprocess.run(("node_modules/.bin/esbuild", *entries, *BUNDLE, *DEFINED), cwd=CACHE, check=True)
        _mark_done("bundles", content)


def _is_changed(step: str, content: bytes) -> bool:
    """Return whether `content` is not what a step last worked on."""
    stamp = CACHE / f"{step}.sha256"
    return not stamp.exists() or stamp.read_text() != hashlib.sha256(content).hexdigest()


def _mark_done(step: str, content: bytes) -> None:
    (CACHE / f"{step}.sha256").write_text(hashlib.sha256(content).hexdigest())


class LibraryPages:
    """A session's browser that shows the pages of libraries, and keeps the current one open between tests."""

    def __init__(self, browser: SessionBrowser, site: LocalSite) -> None:
        self.browser = browser
        self._site = site

    async def open(self, name: str, *, again: bool = False) -> PageView:
        """Show the page `name`. It is loaded if it is not the current one, or if it has to be new (`again`)."""
        view = await self.browser.view()
        url = self._site.url(f"/pages/{name}.html")
        if view.url == url and not again:
            return view
        await self.browser.navigate(url)
        await self.run("await globalThis.ready")
        return await self.browser.view()

    async def run(self, script: str) -> str:
        """Run a script in the page and return its value."""
        return (await self.browser.execute(script)).value

    async def choose(self, opener: str, option: str) -> PageView:
        """Click the element whose mark contains `opener`, then the one whose mark contains `option`."""
        await self.browser.click(first_number(await self.browser.view(), opener))
        return await self.browser.click(first_number(await self.browser.view(), option))


def first_number(view: PageView, part: str) -> int:
    """Return the number of the first mark that contains `part`."""
    found = re.search(rf"\[(\d+)[^\[\]]*?{re.escape(part)}", view.text)
    assert found, f"{part!r} is in no mark of:\n{view.text}"
    return int(found[1])

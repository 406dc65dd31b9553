"""How Chromium is found and started."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from sandbox.parts.desktop import HEIGHT, WIDTH

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_LOCKS = ("SingletonLock", "SingletonCookie", "SingletonSocket", "DevToolsActivePort")
_CACHE_BYTES = 48 * 1024 * 1024
_OFF = (
    *("Translate", "MediaRouter", "DialMediaRouteProvider", "GlobalMediaControls", "OptimizationHints"),
    # Parts of its own window that are pages: a renderer each, and targets that a driver stumbles over.
    *("WebUIOmniboxPopup", "WebUIOmniboxAimPopup", "WebUIOmniboxFullPopup"),
)
_QUIET = (
    # Nothing that calls home, asks, or shows a bubble that nobody is there to close.
    *("--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-quic", "--disable-breakpad", "--disable-crash-reporter", "--noerrdialogs"),
    *("--hide-crash-restore-bubble", "--disable-search-engine-choice-screen", "--password-store=basic"),
    f"--disable-features={','.join(_OFF)}",
)


def find_chromium(path: str) -> str | None:
    """The program at `path`, or when that is empty the first that is installed under a usual name."""
    for name in (path,) if path else _NAMES:
        if found := shutil.which(name):
            return found
    return None


def arguments(program: str, profile: Path, cache: Path, *, windowed: bool, confined: bool) -> tuple[str, ...]:
    """The command line: DevTools on a free port of loopback, its own sandbox only when `confined`."""
    return (
        program,
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        f"--disk-cache-dir={cache}",
        f"--disk-cache-size={_CACHE_BYTES}",
        f"--window-size={WIDTH},{HEIGHT}",
        *_QUIET,
        *(("--start-maximized", "--window-position=0,0") if windowed else ("--headless=new",)),
        # A bar across the page would warn of the missing sandbox; a test browser shows none.
        *(() if confined else ("--no-sandbox", "--test-type")),
        # No GPU here; what draws with WebGL, such as maps, is drawn by the processor.
        *("--disable-gpu", "--enable-unsafe-swiftshader"),
        "about:blank",
    )


def refused_its_sandbox(words: str) -> bool:
    """Whether Chromium ended because the system does not let it make its own sandbox, by what it wrote last."""
    return any(sign in words for sign in ("No usable sandbox", "Failed to move to new namespace", "zygote_host_impl"))


def runs_as_root() -> bool:
    """Root cannot have Chromium's sandbox."""
    return os.geteuid() == 0


def remove_locks(profile: Path, names: Sequence[str] = _LOCKS) -> None:
    """Takes away what a browser that is gone, maybe in another container, left in `profile` to keep others out."""
    for name in names:
        (profile / name).unlink(missing_ok=True)

"""What a sandbox runs beside its shells: the desktop and the browser, each kept running."""

import os

from sandbox.parts.browser import Browser
from sandbox.parts.desktop import Desktop
from sandbox.settings import Settings
from sandbox.shell.environment import SHELL_MARK, shell_environment


class Parts:
    """The desktop and the browser on it. `begin` and `end` once."""

    def __init__(self, settings: Settings, word: str) -> None:
        """`word` marks their processes, as those of the shells."""
        environment = shell_environment(settings.home, "/bin/sh", settings.instance, os.environ)
        environment[SHELL_MARK] = f"{word}-part"
        self.desktop = Desktop(environment, settings.home, wanted=settings.desktop)
        self.browser = Browser(settings.browser, settings.chromium, environment, settings.home, self.desktop)

    @property
    def pids(self) -> set[int]:
        """The processes that somebody waits for."""
        return self.desktop.pids | self.browser.pids

    def begin(self) -> None:
        """Starts what is to be there from the beginning, side by side; returns at once."""
        self.desktop.begin()
        self.browser.begin()

    async def end(self) -> None:
        """Ends all of it in order: the browser, so that it writes down what it has to, then what it draws on."""
        await self.browser.end()
        await self.desktop.end()

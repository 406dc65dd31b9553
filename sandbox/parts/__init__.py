"""Programs of a sandbox beside its shells: the desktop and the browser."""

import os

from sandbox.parts.browser import Browser
from sandbox.parts.desktop import Desktop
from sandbox.settings import Settings
from sandbox.shell.environment import SHELL_MARK, shell_environment


class Parts:
    """The desktop and the browser. Call `start` and `stop` once."""

    def __init__(self, settings: Settings, word: str) -> None:
        """Create both parts. `mark`: identifies their processes, as for shells."""
        environment = shell_environment(settings.agent.name, settings.home, "/bin/sh", settings.instance, os.environ)
        environment[SHELL_MARK] = f"{word}-part"
        self.desktop = Desktop(settings, environment)
        self.browser = Browser(settings, environment, self.desktop)

    @property
    def pids(self) -> set[int]:
        """Processes that this program waits for."""
        return self.desktop.pids | self.browser.pids

    def start(self) -> None:
        """Start the parts that run from the beginning. Return at once."""
        self.desktop.start()
        self.browser.start()

    async def stop(self) -> None:
        """Stop the browser, so that it saves its state, then the desktop that it draws on."""
        await self.browser.stop()
        await self.desktop.stop()

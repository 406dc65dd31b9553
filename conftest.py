"""Settings that every test of the project shares: required programs, timeouts, and groups for parallel runs."""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from app.infrastructure.logging import JsonLines
from tests.support.fuzzing import DETERMINISTIC, LONG

# A loaded machine must not fail an example for being slow; pytest-timeout ends what hangs. CI tries the same examples
# every time, unless the long mode looks for new ones.
settings.register_profile("anker", deadline=None, derandomize=DETERMINISTIC)
settings.load_profile("anker")

ROOT = Path(__file__).parent

REQUIRED_PROGRAMS = {
    "tests/integration/docker": "docker",
    "tests/integration/docker_sessions": "docker",
    "tests/integration/backend_image": "docker",
    "tests/integration/vnc": "docker",
    "tests/integration/browser": "chromium",
    "tests/hostile/container": "docker",
    "tests/fuzz/container": "docker",
}
"""The program that the tests of a folder need; `./test.sh` installs it where it can."""

BUILD_TIMEOUT_SECONDS = 900
"""Timeout of a test that may have to build a Docker image first."""

GROUPS = {
    "tests/integration/docker": "docker",
    "tests/integration/docker_sessions": "docker",
    "tests/integration/backend_image": "docker",
    "tests/integration/vnc": "docker",
    "tests/contract/sandbox": "docker",
    "tests/hostile/container": "docker",
    "tests/fuzz/container": "docker",
    "tests/chaos": "chaos",
    "tests/integration/browser": "browser",
}
"""Folders whose tests run one after the other in one pytest-xdist worker, because they share an engine, a browser or
a replica set. The groups start in this order, the longest first. The tests of any other file form a group too."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's own hook, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests whose program is missing (in CI they fail instead), and assign every test to a group."""
    available: dict[str, bool] = {}
    for item in items:
        folder = _folder_of(item)
        item.add_marker(pytest.mark.xdist_group(GROUPS.get(folder, str(item.path.relative_to(ROOT)))))
        if LONG and folder.startswith("tests/fuzz"):
            item.add_marker(pytest.mark.timeout(0))
        program = REQUIRED_PROGRAMS.get(folder)
        if program is None:
            continue
        item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT_SECONDS))
        if program not in available:
            available[program] = os.environ.get("CI") == "true" or _is_available(program)
        if not available[program]:
            item.add_marker(pytest.mark.skip(reason=f"{program} is not installed or does not run"))
    order = list(dict.fromkeys(GROUPS.values()))
    items.sort(key=lambda item: order.index(GROUPS[_folder_of(item)]) if _folder_of(item) in GROUPS else len(order))


@pytest.fixture(autouse=True)
def _reset_logging() -> Iterator[None]:
    """Undo what a service in this process did to logging: its handler keeps the captured stderr of its test."""
    yield
    root = logging.getLogger()
    mine = [handler for handler in root.handlers if isinstance(handler.formatter, JsonLines)]
    if mine:
        for handler in mine:
            root.removeHandler(handler)
        root.setLevel(logging.WARNING)
        logging.getLogger("app").setLevel(logging.NOTSET)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that the scenarios recorded."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    rows = [value for report in reports for name, value in report.user_properties if name == "scenario"]
    if rows:
        terminalreporter.section("scenarios")
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            terminalreporter.line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def _folder_of(item: pytest.Item) -> str:
    return str(item.path.parent.relative_to(ROOT))


def _is_available(program: str) -> bool:
    path = shutil.which(program)
    if path is None:
        return False
    return program != "docker" or subprocess.run([path, "version"], capture_output=True).returncode == 0

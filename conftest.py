"""What every test of the project shares."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

# A loaded machine must not fail an example for being slow; `pytest-timeout` catches what hangs.
settings.register_profile("house", deadline=None)
settings.load_profile("house")

ROOT = Path(__file__).parent

PARTS = {
    "tests/integration/docker": "docker",
    "tests/integration/docker_sessions": "docker",
    "tests/integration/backend_image": "docker",
    "tests/integration/vnc": "docker",
    "tests/integration/browser": "chromium",
}
"""What the tests of a folder cannot do without; `./test.sh` gets it where it can."""


BUILD_SECONDS = 900
"""For the first test of such a folder: an image may have to be built before it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the tests whose parts are not on this machine; not in CI, where they must be."""
    there: dict[str, bool] = {}
    for item in items:
        part = PARTS.get(str(item.path.parent.relative_to(ROOT)))
        if part is None:
            continue
        item.add_marker(pytest.mark.timeout(BUILD_SECONDS))
        if part not in there:
            there[part] = os.environ.get("CI") == "true" or _is_there(part)
        if not there[part]:
            item.add_marker(pytest.mark.skip(reason=f"there is no {part} here"))


def _is_there(part: str) -> bool:
    path = shutil.which(part)
    if path is None:
        return False
    return part != "docker" or subprocess.run([path, "version"], capture_output=True).returncode == 0

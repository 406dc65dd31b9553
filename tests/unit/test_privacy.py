"""Protection of the service's environment from other programs of its user."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import ctypes
from app.infrastructure.sandbox.local.privacy import hide_process
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
hide_process()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_hidden_process_is_not_dumpable() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]

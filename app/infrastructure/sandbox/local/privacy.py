"""What a local sandbox can see of the service: a clean environment, and nothing of the service's memory."""

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

INHERITED_VARIABLES = frozenset((
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"),
    *("NODE_EXTRA_CA_CERTS", "NPM_CONFIG_REGISTRY", "NPM_CONFIG_CAFILE"),
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_CERT", "PIP_FIND_LINKS"),
    *("PIP_CONFIG_FILE", "PIP_NO_INDEX", "PIP_DEFAULT_TIMEOUT", "PIP_RETRIES"),
    *("PIP_DISABLE_PIP_VERSION_CHECK", "PIP_BREAK_SYSTEM_PACKAGES"),
    "TZ",
))  # fmt: skip
"""The environment variables that a sandbox inherits: those that shells need to reach the network as this machine does.

Each is listed by its full name: `npm_config_*` and `PIP_*` would include registry tokens and client certificates.
"""

_PR_SET_DUMPABLE = 4
"""The number of `PR_SET_DUMPABLE` in prctl(2)."""


def clean_environment(source: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return the environment of a sandbox whose workspace is `home`, built from the service's environment `source`."""
    environment = {name: value for name, value in source.items() if name.upper() in INHERITED_VARIABLES}
    environment["PATH"] = _path_without_virtual_environment(source.get("PATH") or DEFAULT_PATH)
    environment["LANG"] = source.get("LANG") or "C.UTF-8"
    environment["HOME"] = str(home)
    environment["TMPDIR"] = temporary_folder()
    return environment


def temporary_folder() -> str:
    """Return the system's folder for temporary files, with symlinks resolved."""
    return os.path.realpath(tempfile.gettempdir())


def hide_process() -> None:
    """Close `/proc/<pid>` of this process (environment, memory, open files) to other programs of the same user.

    A local sandbox runs as the service's user and could otherwise read the API key there. Child processes are not
    affected, and root can still look. Does nothing on systems other than Linux.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _path_without_virtual_environment(path: str) -> str:
    """Return `path` without this virtual environment: `pip install` in a shell must not change the service."""
    if sys.prefix == sys.base_prefix:
        return path
    own = os.path.realpath(Path(sys.prefix) / "bin")
    parts = [part for part in path.split(os.pathsep) if part and os.path.realpath(part) != own]
    if shutil.which("python3", path=os.pathsep.join(parts)) is None:
        parts.append(str(Path(sys.base_prefix) / "bin"))
    return os.pathsep.join(parts)

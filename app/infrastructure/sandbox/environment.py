"""What a sandbox that is a process on this machine may know of the service's environment: built from nothing."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
_NODE = ("NODE_EXTRA_CA_CERTS", "NPM_CONFIG_REGISTRY", "NPM_CONFIG_CAFILE")
_PIP = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_CERT", "PIP_FIND_LINKS")
_PIP_HABITS = (
    "PIP_CONFIG_FILE",
    "PIP_NO_INDEX",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_RETRIES",
    "PIP_DISABLE_PIP_VERSION_CHECK",
    "PIP_BREAK_SYSTEM_PACKAGES",
)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
_PLACE = ("TZ",)

HANDED_ON = frozenset((*_CERTIFICATES, *_NODE, *_PIP, *_PIP_HABITS, *_PROXIES, *_PLACE))
"""What the shells need to reach the network as this machine does. Each by its name: `npm_config_*` and `PIP_*` as a
whole would hand on registry tokens and client certificates too."""


def clean_environment(source: Mapping[str, str], home: Path) -> dict[str, str]:
    """The environment of a sandbox whose workspace is `home`, from the service's own, `source`."""
    environment = {name: value for name, value in source.items() if name.upper() in HANDED_ON}
    environment["PATH"] = _path_without_ours(source.get("PATH") or DEFAULT_PATH)
    environment["LANG"] = source.get("LANG") or "C.UTF-8"
    environment["HOME"] = str(home)
    environment["TMPDIR"] = temporary_folder()
    return environment


def temporary_folder() -> str:
    """The system's folder for temporary files, symlinks resolved."""
    return os.path.realpath(tempfile.gettempdir())


def _path_without_ours(path: str) -> str:
    """`path` without the folder of our virtual environment: a shell's `pip install` must not change the service."""
    if sys.prefix == sys.base_prefix:
        return path
    ours = os.path.realpath(Path(sys.prefix) / "bin")
    parts = [part for part in path.split(os.pathsep) if part and os.path.realpath(part) != ours]
    if shutil.which("python3", path=os.pathsep.join(parts)) is None:
        parts.append(str(Path(sys.base_prefix) / "bin"))
    return os.pathsep.join(parts)

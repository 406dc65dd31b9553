"""What a shell may know of the service's environment: a whitelist, so that no key or token slips in."""

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL_MARK = "ANKER_SHELL"
"""The variable by which the processes of one shell are known, wherever they were re-parented to."""

_HANDED_ON = frozenset(
    {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "TZ", "TMPDIR"}
    # Where npm finds the headers of this Node when it has to build something; else it downloads them.
    | {"NPM_PACKAGE_CONFIG_NODE_GYP_NODEDIR"}
)
_HANDED_ON_PREFIXES = ("PIP_", "NPM_CONFIG_")


def user_name() -> str:
    """The name of the user this service runs as, or its number where it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def shell_environment(home: Path, bash: str, instance: str, source: Mapping[str, str]) -> dict[str, str]:
    """The variables every shell starts with; `source` is the service's own environment."""
    user = user_name()
    env = {name: value for name, value in source.items() if _may_pass(name.upper())}
    env |= {
        "HOME": str(home),
        "PATH": source.get("PATH") or DEFAULT_PATH,
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        "USER": user,
        "LOGNAME": user,
        "SHELL": bash,
        "PWD": str(home),
        # A pager would wait for a key that nobody presses.
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        "MANPAGER": "cat",
        "SYSTEMD_PAGER": "cat",
    }
    if instance:
        env["ANKER_SANDBOX"] = instance
    return env


def _may_pass(name: str) -> bool:
    return name in _HANDED_ON or name.startswith(_HANDED_ON_PREFIXES)

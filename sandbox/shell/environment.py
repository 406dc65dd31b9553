"""Environment variables of shells: an allowlist, so that no key or token of the service reaches a shell."""

from collections.abc import Mapping
from pathlib import Path

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL_MARK = "ANKER_SHELL"
"""Environment variable that identifies the processes of one shell, whatever their parent is."""

_HANDED_ON = frozenset(
    {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "TZ", "TMPDIR"}
    # Headers of the installed Node, which npm would otherwise download to build native modules.
    | {"NPM_PACKAGE_CONFIG_NODE_GYP_NODEDIR"}
    # Where the installed ss looks.
    | {"PROC_ROOT"}
)
_HANDED_ON_PREFIXES = ("PIP_", "NPM_CONFIG_")


def shell_environment(user: str, home: Path, bash: str, instance: str, source: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of every shell of `user`. `source`: the service's own environment."""
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
        # A pager would wait for a key.
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

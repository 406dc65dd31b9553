"""The command `./run.sh verify-audit`: check that nobody changed the audit log, also while the service runs."""

import argparse
import asyncio
import re
import sys
from collections.abc import Sequence
from contextlib import aclosing

from app.application.services.audit import AuditReport, read_all, verify
from app.domain.errors import AnkerError
from app.providers import choose_store
from app.settings import Settings, UnusableSetting, load_settings

_HEAD = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})")


def main(arguments: Sequence[str]) -> int:
    """Check the log. Return the exit code: 0 if it is intact, 1 if it is not, 2 if it cannot be read."""
    parser = argparse.ArgumentParser(
        prog="anker verify-audit",
        description="Check the hash chain of the audit log of DATA_DIR or MONGODB_URL. Nothing is written.",
        epilog="Exit code: 0 the log is intact, 1 it is not, 2 it cannot be read.",
    )
    parser.add_argument(
        "--expect",
        metavar="NUMBER:HASH",
        action="append",
        default=[],
        type=_head,
        help="a `head` that the service logged: also detects records that were cut off or written again",
    )
    expected: dict[int, str] = dict(parser.parse_args(arguments).expect)
    try:
        report = asyncio.run(_verify(load_settings(), expected))
    except (AnkerError, UnusableSetting) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"{report.count} records, from {report.first_at or '-'} to {report.last_at or '-'}")
    print(f"head {report.head or '-'}")
    if report.bad_number is not None:
        print(f"The audit log is NOT intact. Record {report.bad_number}: {report.problem}.")
        return 1
    print("The audit log is intact.")
    return 0


async def _verify(settings: Settings, expected: dict[int, str]) -> AuditReport:
    async with choose_store(settings).reading() as store, aclosing(read_all(store.audit)) as records:
        return await verify(records, expected=expected)


def _head(text: str) -> tuple[int, str]:
    found = _HEAD.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError("must be NUMBER:HASH, as in the log line `head of the audit log`")
    return int(found[1]), found[2]

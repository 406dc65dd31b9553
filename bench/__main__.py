"""`python -m bench [NAME …] [--quick] [--json FILE]`: run the benchmarks and print one table."""

import argparse
import json
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import (
    desktop,
    fanout,
    first_event,
    history,
    many,
    masking,
    processes,
    sandbox_start,
    sessions_list,
    sizing,
    start,
    tokens,
    tool_turn,
    unread,
)
from bench.harness import Bench
from bench.report import Row, machine, table

BENCHMARKS: dict[str, Callable[[Bench], Iterable[Row]]] = {
    "first_event": first_event.run,
    "tool_turn": tool_turn.run,
    "tokens": tokens.run,
    "history": history.run,
    "sessions_list": sessions_list.run,
    "many": many.run,
    "masking": masking.run,
    "fanout": fanout.run,
    "unread": unread.run,
    "sizing": sizing.run,
    "start": start.run,
    "processes": processes.run,
    "sandbox_start": sandbox_start.run,
    "desktop": desktop.run,
}


def main() -> int:
    """Run the benchmarks. Return 0 whatever the results are, and 1 if a benchmark could not run."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: two minutes for all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    # SIGTERM must run the clean-up of the processes that were started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    before = machine()
    rows, failed = _run(options.names or list(BENCHMARKS), quick=options.quick)
    print(f"Machine: {before['cores']} cores, Python {before['python']}, load before {before['load_average']}", end="")
    print(f", after {machine()['load_average']} (including the benchmarks)\n")
    print(table(rows))
    if options.json:
        report = {"machine": before, "quick": options.quick, "rows": [row.as_json() for row in rows], "failed": failed}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if failed else 0


def _run(names: list[str], *, quick: bool) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    failed: list[str] = []
    for name in names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="anker-bench-", ignore_cleanup_errors=True) as folder:
            try:
                rows.extend(BENCHMARKS[name](Bench(Path(folder), quick)))
            except Exception:
                failed.append(name)
                traceback.print_exc()
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return rows, failed


if __name__ == "__main__":
    sys.exit(main())

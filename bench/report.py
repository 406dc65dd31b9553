"""What a benchmark reports: rows, as a table for people and as JSON for programs."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

_HEAD = ("benchmark", "what", "ours", "beside it", "ratio", "wanted", "holds", "more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured number of ours beside that of a peer, or beside a limit; both in `unit`.

    `at_most` and `at_least` bound the ratio ours / other. With neither the row only informs.
    """

    benchmark: str
    what: str
    unit: str
    ours: float
    beside: str
    other: float
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""
    broken: str = ""
    """What went wrong in what was measured: such a row does not hold, however good its number is."""

    @property
    def ratio(self) -> float:
        """Ours / other."""
        return self.ours / self.other if self.other else float("inf")

    @property
    def holds(self) -> bool | None:
        """Whether the ratio is within its bounds; None when it has none."""
        if self.broken:
            return False
        if self.at_most is None and self.at_least is None:
            return None
        high = float("inf") if self.at_most is None else self.at_most
        low = 0.0 if self.at_least is None else self.at_least
        return low <= self.ratio <= high

    @property
    def wanted(self) -> str:
        """The bounds in words."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        holds = {True: "yes", False: "NO", None: "-"}[self.holds]
        other = f"{self.beside} {shown(self.other, self.unit)}"
        return (
            self.benchmark,
            self.what,
            shown(self.ours, self.unit),
            other,
            f"{self.ratio:.2f}",
            self.wanted,
            holds,
            "; ".join(part for part in (self.broken, self.note) if part),
        )

    def as_json(self) -> dict[str, object]:
        """The row for programs."""
        return {
            "benchmark": self.benchmark,
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours,
            "beside": self.beside,
            "other": self.other,
            "ratio": self.ratio,
            "wanted": self.wanted,
            "holds": self.holds,
            "note": self.note,
            "broken": self.broken,
        }


def within(benchmark: str, what: str, ours: float, limit: float, unit: str, note: str = "", *, broken: str = "") -> Row:
    """A row beside a limit that ours must not exceed."""
    return Row(
        benchmark=benchmark,
        what=what,
        unit=unit,
        ours=ours,
        beside="limit",
        other=limit,
        at_most=1,
        note=note,
        broken=broken,
    )


def shown(value: float, unit: str) -> str:
    """A value with three digits that mean something."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, aligned to be read in a terminal as well."""
    lines = [_HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    printed = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    printed.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(printed)


def machine() -> dict[str, object]:
    """Where it was measured, and how busy that machine was with other things."""
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }

"""Rows of results, as a Markdown table and as JSON."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

_HEADINGS = ("benchmark", "measurement", "result", "reference", "ratio", "target", "met", "notes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One result and its reference, a peer's result or a limit, both in `unit`.

    `at_most` and `at_least` bound the ratio result / reference. Without them the row has no target.
    """

    benchmark: str
    measurement: str
    unit: str
    result: float
    reference: str
    reference_value: float
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""
    failure: str = ""
    """What failed during the measurement; such a row does not meet its target, whatever the result."""

    @property
    def ratio(self) -> float:
        """Return result / reference."""
        return self.result / self.reference_value if self.reference_value else float("inf")

    @property
    def met(self) -> bool | None:
        """Return whether the ratio is within its bounds; None if it has none."""
        if self.failure:
            return False
        if self.at_most is None and self.at_least is None:
            return None
        high = float("inf") if self.at_most is None else self.at_most
        low = 0.0 if self.at_least is None else self.at_least
        return low <= self.ratio <= high

    @property
    def target(self) -> str:
        """Return the bounds as text."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the row."""
        met = {True: "yes", False: "NO", None: "-"}[self.met]
        reference = f"{self.reference} {shown(self.reference_value, self.unit)}" if self.reference else ""
        return (
            self.benchmark,
            self.measurement,
            shown(self.result, self.unit),
            reference,
            f"{self.ratio:.2f}" if self.reference else "",
            self.target,
            met,
            "; ".join(part for part in (self.failure, self.note) if part),
        )

    def as_json(self) -> dict[str, object]:
        """Return the row as a JSON object."""
        return {
            "benchmark": self.benchmark,
            "measurement": self.measurement,
            "unit": self.unit,
            "result": self.result,
            "reference": self.reference,
            "reference_value": self.reference_value,
            "ratio": self.ratio,
            "target": self.target,
            "met": self.met,
            "note": self.note,
            "failure": self.failure,
        }


def within(
    benchmark: str, measurement: str, result: float, limit: float, unit: str, note: str = "", *, failure: str = ""
) -> Row:
    """Return a row whose result must not exceed `limit`."""
    return Row(
        benchmark=benchmark,
        measurement=measurement,
        unit=unit,
        result=result,
        reference="limit",
        reference_value=limit,
        at_most=1,
        note=note,
        failure=failure,
    )


def shown(value: float, unit: str) -> str:
    """Return a value with three significant digits, and its unit."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, aligned for a terminal."""
    lines = [_HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    printed = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    printed.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(printed)


def machine() -> dict[str, object]:
    """Return the machine's properties and its load."""
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }

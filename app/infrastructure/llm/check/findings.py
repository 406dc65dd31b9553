"""What the probes of the model check find, and the verdict that follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

MAX_QUOTE = 160
"""Maximum number of characters of a quoted reply."""

Level = Literal["ok", "info", "warning", "problem"]
FactValue = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Result of one probe. All texts are single lines without secrets."""

    probe: str
    level: Level
    text: str
    """What was seen."""
    advice: str = ""
    """What to do about it."""
    limit: str = ""
    """What the verdict says of it, for a warning or a problem."""
    facts: Mapping[str, FactValue] = field(default_factory=dict[str, FactValue])
    """Fields of the profile that follow from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The summary of all findings."""

    usable: bool
    text: str
    facts: Mapping[str, FactValue]
    """Fields of the profile, as far as they were found."""


def verdict_of(findings: Sequence[Finding]) -> Verdict:
    """Return the verdict that follows from `findings`."""
    facts: dict[str, FactValue] = {}
    for finding in findings:
        facts.update(finding.facts)
    problems = [finding.limit or finding.text for finding in findings if finding.level == "problem"]
    limits = [finding.limit or finding.text for finding in findings if finding.level == "warning"]
    if problems:
        return Verdict(usable=False, text=f"not usable: {'; '.join(problems)}", facts=facts)
    if limits:
        return Verdict(usable=True, text=f"usable with limits: {'; '.join(limits)}", facts=facts)
    return Verdict(usable=True, text="usable", facts=facts)


def quote(text: str) -> str:
    """Return a model's text as a short single line."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return f"“{line[: MAX_QUOTE - 1]}…”" if len(line) > MAX_QUOTE else f"“{line}”"


def reason_of(failure: Exception) -> str:
    """Return what the server said if it said anything, otherwise our own description of the failure."""
    return str(failure).rpartition("The server said: ")[2]

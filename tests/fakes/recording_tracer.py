"""A tracer that keeps its spans in memory."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class RecordedSpan:
    name: str
    kind: str
    attributes: dict[str, Any]
    parent: Any
    trace_id: str = "0" * 31 + "1"
    error: str | None = None
    """Class of the failure, empty after a success; None while the span is open."""

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{id(self):016x}-01"

    def set(self, attributes) -> None:
        self.attributes.update(attributes)

    def rename(self, name: str) -> None:
        self.name = name

    def end(self, error: str = "") -> None:
        assert self.error is None, "ended twice"
        self.error = error


@dataclass
class RecordingTracer:
    captures_content: bool = False
    spans: list[RecordedSpan] = field(default_factory=list)

    def start(self, name, kind, attributes, *, parent, started_at=None) -> RecordedSpan:
        self.spans.append(RecordedSpan(name, kind, dict(attributes), parent))
        return self.spans[-1]

    def named(self, name: str) -> list[RecordedSpan]:
        return [span for span in self.spans if span.name.startswith(name)]

    @property
    def outline(self) -> list[str]:
        """Each span with the span above it, and its failure."""
        return [
            f"{getattr(span.parent, 'name', span.parent)} > {span.name}{' !' if span.error else ''}{span.error or ''}"
            for span in self.spans
        ]

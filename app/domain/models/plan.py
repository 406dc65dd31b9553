"""A plan: ordered steps with a status each."""

from dataclasses import dataclass, replace
from typing import Literal

StepStatus = Literal["pending", "running", "completed", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. `result` is what the executor reported about it; clients do not see it."""

    id: str
    description: str
    status: StepStatus = "pending"
    result: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps towards `goal`, in the order in which they are worked through."""

    goal: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def running(self) -> Step | None:
        """The step that is being worked on, if any."""
        return next((step for step in self.steps if step.status == "running"), None)

    @property
    def next_pending(self) -> Step | None:
        """The first step that nobody has begun."""
        return next((step for step in self.steps if step.status == "pending"), None)

    def with_step(self, step: Step) -> "Plan":
        """This plan with the step of the same id replaced."""
        return replace(self, steps=tuple(step if old.id == step.id else old for old in self.steps))

    def with_pending(self, steps: tuple[Step, ...]) -> "Plan":
        """This plan with everything still pending replaced by `steps` (ids that are taken get a new one)."""
        kept = tuple(step for step in self.steps if step.status != "pending")
        return replace(self, steps=distinct_ids(kept + steps))


def distinct_ids(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps, each with an id of its own: an empty or repeated id becomes the next free number."""
    taken: set[str] = set()
    result: list[Step] = []
    for position, step in enumerate(steps, start=1):
        step_id, number = step.id.strip(), position
        while not step_id or step_id in taken:
            step_id, number = str(number), number + 1
        taken.add(step_id)
        result.append(replace(step, id=step_id))
    return tuple(result)

"""A plan: ordered steps, each with a status."""

from dataclasses import dataclass, replace
from typing import Literal

StepStatus = Literal["pending", "running", "completed", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a plan."""

    id: str
    description: str
    status: StepStatus = "pending"
    result: str = ""
    """What the executor reported. Clients do not see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps towards a goal, in the order in which they are carried out."""

    goal: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def running(self) -> Step | None:
        """The step in progress, if any."""
        return next((step for step in self.steps if step.status == "running"), None)

    @property
    def next_pending(self) -> Step | None:
        """The first step that has not been started, if any."""
        return next((step for step in self.steps if step.status == "pending"), None)

    def with_step(self, step: Step) -> "Plan":
        """Return this plan with the step of the same ID replaced."""
        return replace(self, steps=tuple(step if old.id == step.id else old for old in self.steps))

    def with_pending(self, steps: tuple[Step, ...]) -> "Plan":
        """Return this plan with all pending steps replaced by `steps`. A step whose ID is taken gets a new one."""
        kept = tuple(step for step in self.steps if step.status != "pending")
        return replace(self, steps=with_distinct_ids(kept + steps))


def with_distinct_ids(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Return the steps with distinct IDs: an empty or repeated ID becomes the next free number."""
    taken: set[str] = set()
    result: list[Step] = []
    for position, step in enumerate(steps, start=1):
        step_id, number = step.id.strip(), position
        while not step_id or step_id in taken:
            step_id, number = str(number), number + 1
        taken.add(step_id)
        result.append(replace(step, id=step_id))
    return tuple(result)

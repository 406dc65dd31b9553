"""The state of a session's run: what a worker needs, beside the two transcripts, to go on where another stopped."""

from dataclasses import dataclass
from typing import Literal

from app.domain.models.plan import Plan
from app.domain.models.tool import OpenCall

Phase = Literal["idle", "planning", "executing", "answering", "waiting"]

Thread = Literal["talk", "work"]
"""The two transcripts of a session: `talk` with the planner (messages, plans, step results, answers; short) and
`work` with the executor (every tool call). Planning and answering never pay for the length of the work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A checkpoint. Stored whole with every change: it is a plan and a few ids, whatever the history's length."""

    phase: Phase = "idle"
    consumed: int = 0
    """Number of the newest user message that the agent has read."""
    plan: Plan = Plan()
    open_calls: tuple[OpenCall, ...] = ()
    """Tool calls that are under way: `calling` is in the log, `called` is not."""
    asked: str | None = None
    """While `waiting`: the tool call that the user's next message answers."""
    words: str = ""
    """While `planning`: the user's words that the plan is for. Later they stand in the transcripts."""
    turns: int = 0
    """Model turns that this run has taken."""
    computer: str = ""
    """The life of the sandbox (`Sandbox.computer`) that the agent knows; empty while it has used none."""

    deaths: int = 0
    """Processes that died with this run since it last got on: since a plan, a tool call or a step was finished."""

    revision: str = ""
    """Names this very checkpoint (`RunBook` makes a new name for each); empty before the first."""

    def at_rest(self, *, consumed: int) -> "RunState":
        """The checkpoint once the run is over: only what outlives a run, with the messages up to `consumed` read."""
        return RunState(consumed=consumed, computer=self.computer)

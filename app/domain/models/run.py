"""The state of a session's run: what a worker needs, beside the two transcripts, to go on where another stopped."""

from dataclasses import dataclass
from typing import Literal

from app.domain.models.plan import Plan
from app.domain.models.tool import OpenCall

Phase = Literal["idle", "planning", "executing", "answering", "waiting"]

TranscriptName = Literal["talk", "work"]
"""The two transcripts of a session: `talk` with the planner (messages, plans, step results, answers; short) and
`work` with the executor (every tool call). Planning and answering never pay for the length of the work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint. Stored whole with every change: it is a plan and a few ids, whatever the history's length."""

    phase: Phase = "idle"
    last_read_message: int = 0
    """Number of the newest user message that the agent has read."""
    plan: Plan = Plan()
    open_calls: tuple[OpenCall, ...] = ()
    """Tool calls that are under way: `calling` is in the log, `called` is not."""
    pending_question: str | None = None
    """While `waiting`: the tool call that the user's next message answers."""
    unplanned_text: str = ""
    """While `planning`: the user's words that the plan is for. Later they stand in the transcripts."""
    model_turns: int = 0
    """Model turns that this run has taken."""
    sandbox_instance: str = ""
    """The life of the sandbox (`Sandbox.instance_id`) that the agent knows; empty while it has used none."""

    crash_count: int = 0
    """Processes that died with this run since it last got on: since a plan, a tool call or a step was finished."""

    revision: str = ""
    """Names this very checkpoint (`RunBook` makes a new name for each); empty before the first."""

    def at_rest(self, *, last_read_message: int) -> "Checkpoint":
        """The checkpoint once the run is over: only what outlives a run, with the messages up to `consumed` read."""
        return Checkpoint(last_read_message=last_read_message, sandbox_instance=self.sandbox_instance)

"""The state of a run: what a worker needs, besides the transcripts, to continue where another worker stopped."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from app.domain.models.message import Usage
from app.domain.models.plan import Plan
from app.domain.models.tool import OpenCall

Phase = Literal["idle", "planning", "executing", "answering", "waiting"]

TranscriptName = Literal["planner", "executor"]
"""The two transcripts of a session.

`planner` is short: user messages, plans, step results and final answers. `executor` holds every tool call. The cost of
planning and answering therefore does not grow with the length of the execution.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state of a run. Every commit stores it whole; its size does not depend on the length of the history."""

    phase: Phase = "idle"
    last_read_message: int = 0
    """Event number of the newest user message that the agent has read."""
    plan: Plan = Plan()
    open_calls: tuple[OpenCall, ...] = ()
    """Tool calls in progress: their `calling` event is stored, their `called` event is not."""
    pending_question: str | None = None
    """In phase `waiting`: ID of the tool call that the next user message answers."""
    unplanned_text: str = ""
    """In phase `planning`, or `waiting` with no plan: text of the user messages to plan for."""
    answer_requested: bool = False
    """In phase `answering`: whether the instruction to answer is in the planner's transcript."""
    usage: Usage = Usage()
    """Model calls, tokens and cost of this run."""
    usage_at_grant: Usage = Usage()
    """`usage` when the agent read the newest user message. The limits of a run count from there."""
    steps_started: int = 0
    """Number of steps that were started since then."""
    recent_turns: tuple[str, ...] = ()
    """Fingerprints of the running step's newest turns, by which a circle is recognised."""
    sandbox_instance: str = ""
    """The `Sandbox.instance_id` that the agent last used; empty if it has used none."""

    model: str = ""
    """Name of the session's model profile; empty for the default. The store sets it whenever it loads a checkpoint."""
    given_title: str = ""
    """Title that the user gave the session; empty if the agent names it. The store sets it, as `model`."""
    title: str = ""
    """Title of the session, whoever gave it; empty before the first message. The store sets it, as `model`."""
    has_title_event: bool = False
    """Whether the agent has stored a `title` event in this session."""
    origin: str = ""
    """Where the newest user message came from, for metrics and traces. The store sets it, as `model`."""

    transcript_starts: Mapping[TranscriptName, int] = field(default_factory=dict[TranscriptName, int])
    """Number of stored entries before the newest summary of each transcript, set by `RunCheckpointer`; 0 if absent."""

    crash_count: int = 0
    """Number of processes that died during this run since its last progress: a finished plan, tool call or step."""

    revision: str = ""
    """Unique name of this checkpoint, set by `RunCheckpointer`; empty before the first commit."""

    def at_rest(self) -> "Checkpoint":
        """Return the checkpoint after the end of the run: only what outlives a run."""
        return Checkpoint(
            last_read_message=self.last_read_message,
            sandbox_instance=self.sandbox_instance,
            model=self.model,
            given_title=self.given_title,
            title=self.title,
            has_title_event=self.has_title_event,
            origin=self.origin,
        )

"""The run's book: its state and transcripts as they stand in the event_log, and the one way to move them on."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import uuid4

from app.domain.models.event import Event
from app.domain.models.message import Message, SystemMessage, Transcript, Usage
from app.domain.models.run import Checkpoint, TranscriptName
from app.domain.prompts import executing, planning
from app.domain.repositories.event_log import Commit, EventLog
from app.domain.services.agents.writing import Writing

_SYSTEM: dict[TranscriptName, str] = {"talk": planning.SYSTEM, "work": executing.SYSTEM}


def unix_now() -> int:
    """Whole seconds since the epoch, UTC."""
    return int(time.time())


class RunBook:
    """One session's run, loaded from the event_log and written back change by change.

    What is staged goes out with the next change, so that a model turn costs one write. A change that the store cannot
    take now is tried again until it can: what was done is not forgotten because it could not be written down at once.
    """

    def __init__(
        self,
        session_id: str,
        event_log: EventLog,
        *,
        fencing_token: int | None = None,
        now: Callable[[], int] = unix_now,
    ) -> None:
        """`fencing_token`: see `Commit.fencing_token`."""
        self.session_id = session_id
        self._fencing_token = fencing_token
        self.state = Checkpoint()
        self._event_log = event_log
        self._now = now
        self._threads: dict[TranscriptName, Transcript] = {}
        self._staged: list[tuple[TranscriptName, Message]] = []
        self._usage = Usage()
        self._revision = ""
        """Of the newest checkpoint. Not the state's own, for a state may be made anew."""
        self._behind: Writing | None = None
        self._hurried = False

    async def load(self) -> None:
        """Read the newest checkpoint; whatever was staged is forgotten, as the event_log never saw it."""
        await self.settle()
        self.state = await self._event_log.load_checkpoint(self.session_id)
        self._revision = self.state.revision
        self._threads.clear()
        self._staged.clear()

    async def thread(self, name: TranscriptName) -> Transcript:
        """A transcript, read from the event_log when it is first asked for. Its system message is never stored, so
        that every session begins with the prompt of the version that runs."""
        if name not in self._threads:
            said = await self._event_log.load_transcript(self.session_id, name)
            self._threads[name] = Transcript([SystemMessage(content=_SYSTEM[name]), *said])
        return self._threads[name]

    async def unread(self) -> list[tuple[int, str]]:
        """(number, text) of the user's messages that the agent has not read."""
        words = await self._event_log.unread_messages(self.session_id, after=self.state.last_read_message)
        return [(word.number, word.content) for word in words]

    async def stage(self, name: TranscriptName, *messages: Message) -> None:
        """Say something in a transcript; stored with the next commit."""
        (await self.thread(name)).append(*messages)
        self._staged.extend((name, message) for message in messages)

    def spent(self, usage: Usage) -> None:
        """Count what a model call cost; stored with the next commit."""
        self._usage += usage

    async def commit(
        self, events: Sequence[Event] = (), *, state: Checkpoint | None = None, ends: bool = False
    ) -> None:
        """Write `events`, everything staged, and the new state, as one.

        Raises:
            Superseded: `ends` is set, and there is a user message that this run has not read.
            LeaseLost: another worker has the run.
            StaleCheckpoint: the run stands elsewhere than this book says; load.
            StoreUnavailable: only after `hurry`.
        """
        await self.settle()
        await self._write(events, state, ends=ends).finish()

    async def commit_behind(self, events: Sequence[Event], *, state: Checkpoint) -> None:
        """As `commit`, but the write goes on while the run does: the model may be asked in the meantime.

        Nothing is written before it, and what fails in it is raised by the next commit. Should the process die first,
        the event_log says what it said before, as if it had died a moment earlier.
        """
        await self.settle()
        self._behind = self._write(events, state, ends=False)

    async def settle(self) -> None:
        """Wait for a write that is behind, to its end whatever happens to the caller."""
        if self._behind is not None:
            behind, self._behind = self._behind, None
            await behind.finish()

    def hurry(self) -> None:
        """No write waits for the store from now on, neither the one that is behind nor those that follow: the run is
        being cut short, or a person waits for what is to be written."""
        self._hurried = True
        if self._behind is not None:
            self._behind.hurry()

    def _write(self, events: Sequence[Event], state: Checkpoint | None, *, ends: bool) -> Writing:
        before, self._revision = self._revision, uuid4().hex
        self.state = replace(state or self.state, revision=self._revision)
        change = Commit(
            timestamp=self._now(),
            events=tuple(events),
            messages=tuple(self._staged),
            checkpoint=self.state,
            usage=self._usage if self._usage.calls else None,
            ends_after_message=self.state.last_read_message if ends else None,
            fencing_token=self._fencing_token,
            expected_revision=before,
        )
        self._staged.clear()
        self._usage = Usage()
        writing = Writing(self._event_log, self.session_id, change)
        if self._hurried:
            writing.hurry()
        return writing

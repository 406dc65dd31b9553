"""The run's book: its state and transcripts as they stand in the journal, and the one way to move them on."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from app.domain.models.event import Event, EventRecord
from app.domain.models.message import Message, SystemMessage, Transcript, Usage
from app.domain.models.run import RunState, Thread
from app.domain.prompts import executing, planning
from app.domain.repositories.journal import Change, Journal

T = TypeVar("T")

_SYSTEM: dict[Thread, str] = {"talk": planning.SYSTEM, "work": executing.SYSTEM}


def unix_now() -> int:
    """Whole seconds since the epoch, UTC."""
    return int(time.time())


class RunBook:
    """One session's run, loaded from the journal and written back change by change.

    What is staged goes out with the next change, so that a model turn costs one write. A commit is never left half
    way: when the run is cancelled during one, it is finished first.
    """

    def __init__(
        self, session_id: str, journal: Journal, *, fence: int | None = None, now: Callable[[], int] = unix_now
    ) -> None:
        """`fence`: see `Change.fence`."""
        self.session_id = session_id
        self._fence = fence
        self.state = RunState()
        self._journal = journal
        self._now = now
        self._threads: dict[Thread, Transcript] = {}
        self._staged: list[tuple[Thread, Message]] = []
        self._usage = Usage()
        self._behind: asyncio.Future[Sequence[EventRecord]] | None = None

    async def load(self) -> None:
        """Read the newest checkpoint; whatever was staged is forgotten, as the journal never saw it."""
        await self.settle()
        self.state = await self._journal.run_state(self.session_id)
        self._threads.clear()
        self._staged.clear()

    async def thread(self, name: Thread) -> Transcript:
        """A transcript, read from the journal when it is first asked for. Its system message is never stored, so
        that every session begins with the prompt of the version that runs."""
        if name not in self._threads:
            said = await self._journal.transcript(self.session_id, name)
            self._threads[name] = Transcript([SystemMessage(content=_SYSTEM[name]), *said])
        return self._threads[name]

    async def unread(self) -> list[tuple[int, str]]:
        """(number, text) of the user's messages that the agent has not read."""
        words = await self._journal.unread_words(self.session_id, after=self.state.consumed)
        return [(word.number, word.content) for word in words]

    async def stage(self, name: Thread, *messages: Message) -> None:
        """Say something in a transcript; stored with the next commit."""
        (await self.thread(name)).append(*messages)
        self._staged.extend((name, message) for message in messages)

    def spent(self, usage: Usage) -> None:
        """Count what a model call cost; stored with the next commit."""
        self._usage += usage

    async def commit(self, events: Sequence[Event] = (), *, state: RunState | None = None, ends: bool = False) -> None:
        """Write `events`, everything staged, and the new state, as one.

        Raises:
            Superseded: `ends` is set, and there is a user message that this run has not read.
        """
        await self.settle()
        await _to_the_end(self._write(events, state, ends=ends))

    async def commit_behind(self, events: Sequence[Event], *, state: RunState) -> None:
        """As `commit`, but the write goes on while the run does: the model may be asked in the meantime.

        Nothing is written before it, and what fails in it is raised by the next commit. Should the process die first,
        the journal says what it said before, as if it had died a moment earlier.
        """
        await self.settle()
        self._behind = self._write(events, state, ends=False)

    async def settle(self) -> None:
        """Wait for a write that is behind, to its end whatever happens to the caller."""
        if self._behind is not None:
            behind, self._behind = self._behind, None
            await _to_the_end(behind)

    def _write(
        self, events: Sequence[Event], state: RunState | None, *, ends: bool
    ) -> "asyncio.Future[Sequence[EventRecord]]":
        if state is not None:
            self.state = state
        change = Change(
            at=self._now(),
            events=tuple(events),
            said=tuple(self._staged),
            run=self.state,
            usage=self._usage if self._usage.calls else None,
            ends_after=self.state.consumed if ends else None,
            fence=self._fence,
        )
        self._staged.clear()
        self._usage = Usage()
        return asyncio.ensure_future(self._journal.commit(self.session_id, change))


async def _to_the_end(task: asyncio.Future[T]) -> T:
    """The task's result. A cancellation of the caller waits for the task first: its write may already be under way."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):  # asked once more: the answer is the same
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen; the cancellation matters more
        raise

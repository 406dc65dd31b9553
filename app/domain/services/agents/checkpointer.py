"""The state of a run in memory, and the only way to write it to the event log."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

from app.domain.clock import unix_now
from app.domain.errors import StaleCheckpoint, StoreUnavailable
from app.domain.external.secrets import NoSecrets, SecretMask
from app.domain.external.telemetry import NO_RUN_OBSERVER, RunObserver
from app.domain.models.event import Event
from app.domain.models.limits import day_of
from app.domain.models.message import (
    MaskRecord,
    Message,
    SummaryRecord,
    SystemMessage,
    Transcript,
    TranscriptEntry,
    Usage,
)
from app.domain.models.run import Checkpoint, TranscriptName
from app.domain.prompts import compaction, executing, planning
from app.domain.repositories.event_log import Commit, EventLog, UnreadMessage
from app.domain.services.agents.window import ContextWindows

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.3
"""Pause in seconds between two attempts to write a commit. Clients see no progress until one succeeds."""

_SYSTEM_PROMPTS: dict[TranscriptName, str] = {"planner": planning.SYSTEM, "executor": executing.SYSTEM}


class PendingCommit:
    """A commit that is being written. It is retried until the store accepts it, so it needs `expected_revision`."""

    def __init__(
        self, event_log: EventLog, session_id: str, commit: Commit, observer: RunObserver = NO_RUN_OBSERVER
    ) -> None:
        self._event_log = event_log
        self._observer = observer
        self._session_id = session_id
        self._commit = commit
        self._last_attempt = asyncio.Event()
        self._task = asyncio.create_task(self._write(), name=f"commit of {session_id}")

    async def wait(self) -> None:
        """Wait until the commit is stored. On cancellation, wait for the attempt in flight and do not retry.

        The attempt in flight may reach the store, so nothing else may be written before it has ended.

        Raises:
            Superseded, LeaseLost, StaleCheckpoint, NotFound, TooLarge: See `EventLog.commit`. Nothing is stored.
            StoreUnavailable: The store is unavailable, and `stop_retrying` was called.
        """
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            self.stop_retrying()
            while not self._task.done():
                with suppress(asyncio.CancelledError):  # A repeated cancellation changes nothing.
                    await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.exception()  # Mark it as retrieved: the cancellation takes precedence.
            raise

    def stop_retrying(self) -> None:
        """Make the current or next attempt the last one."""
        self._last_attempt.set()

    async def _write(self) -> None:
        warned, started = False, time.perf_counter()
        while True:
            try:
                await self._event_log.commit(self._session_id, self._commit)
                self._observer.stored(self._commit.events, time.perf_counter() - started)
                return
            except StaleCheckpoint:
                raise
            except StoreUnavailable as error:
                if self._last_attempt.is_set():
                    raise
                if not warned:
                    log.warning("commit waits: the store is unavailable", extra={"error": str(error)})
                    warned = True
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_SECONDS):
                    await self._last_attempt.wait()


class RunCheckpointer:
    """The checkpoint and the transcripts of one session, loaded from the event log and written back by commits.

    Staged messages are written with the next commit, so that a model turn costs one write. A commit that the store
    cannot take is retried until it can: the work of a run is not lost because of an outage.
    """

    def __init__(
        self,
        session_id: str,
        event_log: EventLog,
        *,
        fencing_token: int | None = None,
        windows: ContextWindows | None = None,
        mask: SecretMask | None = None,
        now: Callable[[], int] = unix_now,
        observer: RunObserver = NO_RUN_OBSERVER,
    ) -> None:
        """Create a checkpointer. Call `load` before use.

        Args:
            session_id: The session.
            event_log: The event log.
            fencing_token: See `Commit.fencing_token`.
            windows: What is known of the models' context windows; None to begin anew.
            mask: Masks the service's own secrets in what comes from the model and from tools; None to mask nothing.
            now: Returns the current time in whole seconds since the epoch, UTC.
            observer: Is told of every commit that is stored.
        """
        self.session_id = session_id
        self.checkpoint = Checkpoint()
        self.windows = windows or ContextWindows()
        self.mask = mask or NoSecrets()
        self._event_log = event_log
        self._fencing_token = fencing_token
        self._now = now
        self._observer = observer
        self._transcripts: dict[TranscriptName, Transcript] = {}
        self._lengths: dict[TranscriptName, int] = {}
        """Number of entries of each loaded transcript in the event log, with the staged ones."""
        self._starts: dict[TranscriptName, int] = {}
        """See `Checkpoint.transcript_starts`. Kept separately, as `_revision`."""
        self._staged: list[tuple[TranscriptName, TranscriptEntry]] = []
        self._usage = Usage()
        """Usage that is in no commit yet."""
        self._unconfirmed = Usage()
        """Usage in the newest commit, until that is known to be stored."""
        self._revision = ""
        """Revision of the newest checkpoint. Kept separately, because `checkpoint` may be replaced by a new object."""
        self._pending: PendingCommit | None = None
        self._no_retries = False

    async def load(self) -> None:
        """Load the newest checkpoint. Discard staged messages: the event log does not have them."""
        await self.wait_for_pending()
        checkpoint = await self._event_log.load_checkpoint(self.session_id)
        if checkpoint.revision != self._revision:
            self._usage += self._unconfirmed
        self._unconfirmed = Usage()
        self.checkpoint = replace(checkpoint, usage=checkpoint.usage + self._usage)
        self._revision = checkpoint.revision
        self._starts = dict(self.checkpoint.transcript_starts)
        self._transcripts.clear()
        self._staged.clear()

    async def reload_given_title(self) -> None:
        """Update `given_title` of the checkpoint: the user may have renamed the session during the attempt."""
        with suppress(StoreUnavailable):  # The title is not worth another attempt.
            stored = await self._event_log.load_checkpoint(self.session_id)
            self.checkpoint = replace(self.checkpoint, given_title=stored.given_title, title=stored.title)

    async def transcript(self, name: TranscriptName) -> Transcript:
        """Return a transcript, loaded on first use.

        The system prompt is not stored: every attempt uses the prompt of the running version.
        """
        if name not in self._transcripts:
            start = self._starts.get(name, 0)
            stored = await self._event_log.load_transcript(self.session_id, name, after=start)
            self._lengths[name] = start + len(stored)
            self._transcripts[name] = Transcript(_shown([SystemMessage(content=_SYSTEM_PROMPTS[name])], stored))
        return self._transcripts[name]

    def is_summarized(self, name: TranscriptName) -> bool:
        """Return whether a transcript begins with a summary in place of older messages."""
        return name in self._starts

    async def unread_messages(self) -> Sequence[UnreadMessage]:
        """Return the user messages that the agent has not read."""
        return await self._event_log.unread_messages(self.session_id, after=self.checkpoint.last_read_message)

    async def tokens_today(self) -> int:
        """Return how many tokens all runs of the session's owner have used today; 0 if the store is unavailable."""
        stored = 0
        with suppress(StoreUnavailable):  # The next commit waits for the store, and the next call asks again.
            stored = await self._event_log.tokens_of_owner(self.session_id, day=day_of(self._now()))
        return stored + self._usage.total_tokens

    async def stage(self, name: TranscriptName, *messages: Message) -> None:
        """Append messages to a transcript. They are stored with the next commit."""
        (await self.transcript(name)).append(*messages)
        self._lengths[name] += len(messages)
        self._staged.extend((name, message) for message in messages)

    async def compact(self, name: TranscriptName, record: MaskRecord | SummaryRecord, *messages: Message) -> Transcript:
        """Store `record`, `messages` and everything staged, and return the new transcript.

        Raises:
            LeaseLost, StaleCheckpoint, StoreUnavailable: See `commit`.
        """
        shown = (await self.transcript(name)).since(0)
        if isinstance(record, SummaryRecord):
            self._starts[name] = self._lengths[name]
        self._lengths[name] += 1 + len(messages)
        self._staged.extend((name, entry) for entry in (record, *messages))
        self._transcripts[name] = Transcript(_shown(shown, (record, *messages)))
        await self.commit()
        return self._transcripts[name]

    def add_usage(self, usage: Usage) -> None:
        """Add the cost of a model call to the run and to the session. It is stored with the next commit."""
        self._usage += usage
        self.checkpoint = replace(self.checkpoint, usage=self.checkpoint.usage + usage)

    async def store_usage(self) -> None:
        """Store the usage that a refused or cancelled commit did not store, and nothing else that it contained.

        Raises:
            LeaseLost, StaleCheckpoint, StoreUnavailable: See `commit`.
        """
        if self._usage.calls or self._unconfirmed.calls:
            await self.load()
        if self._usage.calls:
            await self.commit()

    async def commit(
        self, events: Sequence[Event] = (), *, checkpoint: Checkpoint | None = None, ends_run: bool = False
    ) -> None:
        """Store `events`, everything staged, and the checkpoint, in one commit.

        Args:
            events: The events to append.
            checkpoint: The new checkpoint; None to store the current one.
            ends_run: Whether this commit ends the run.

        Raises:
            Superseded: `ends_run` is set, and a user message that this run has not read is stored.
            LeaseLost: Another worker has the run.
            StaleCheckpoint: The stored checkpoint is not the expected one; call `load`.
            StoreUnavailable: The store is unavailable, and `stop_retrying` was called.
        """
        await self.wait_for_pending()
        await self._start_commit(events, checkpoint, ends_run=ends_run).wait()
        self._unconfirmed = Usage()

    async def commit_in_background(self, events: Sequence[Event], *, checkpoint: Checkpoint) -> None:
        """Start a commit as in `commit` and return without waiting for it, so that the model can be called meanwhile.

        Later commits wait for this one, and the next one raises its errors. If the process dies before the commit is
        stored, the event log is as if the process had died a moment earlier.
        """
        await self.wait_for_pending()
        self._pending = self._start_commit(events, checkpoint, ends_run=False)

    async def wait_for_pending(self) -> None:
        """Wait for the background commit, if there is one, even if the caller is cancelled."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            await pending.wait()
            self._unconfirmed = Usage()

    def stop_retrying(self) -> None:
        """Do not retry the background commit or later ones: the run is being interrupted, or a user waits for it."""
        self._no_retries = True
        if self._pending is not None:
            self._pending.stop_retrying()

    def _start_commit(self, events: Sequence[Event], checkpoint: Checkpoint | None, *, ends_run: bool) -> PendingCommit:
        expected_revision, self._revision = self._revision, uuid4().hex
        self.checkpoint = replace(
            checkpoint or self.checkpoint, revision=self._revision, transcript_starts=dict(self._starts)
        )
        commit = Commit(
            timestamp=self._now(),
            events=tuple(events),
            messages=tuple(self._staged),
            checkpoint=self.checkpoint,
            usage=self._usage if self._usage.calls else None,
            ends_after_message=self.checkpoint.last_read_message if ends_run else None,
            fencing_token=self._fencing_token,
            expected_revision=expected_revision,
        )
        self._staged.clear()
        self._usage, self._unconfirmed = Usage(), self._usage
        pending = PendingCommit(self._event_log, self.session_id, commit, self._observer)
        if self._no_retries:
            pending.stop_retrying()
        return pending


def _shown(messages: Sequence[Message], entries: Sequence[TranscriptEntry]) -> list[Message]:
    """Return what the model is shown of `messages`, which begin with the system prompt, and the entries after them."""
    shown = list(messages)
    for entry in entries:
        match entry:
            case MaskRecord():
                shown[: entry.before] = compaction.masked(shown[: entry.before], images_only=entry.images_only)
            case SummaryRecord():
                del shown[1:]
            case _:
                shown.append(entry)
    return shown

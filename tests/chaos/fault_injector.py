"""Inject faults into a cluster while users work: killed and suspended processes, unavailable stores. All random
decisions come from one seed."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tests.chaos.user_session import UserSession
from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.cluster import Cluster, Member
from tests.support.eventually import eventually
from tests.support.stores import Mongod

Fault = Callable[[], Awaitable[None]]
Counter = Callable[[], int]
"""Returns a number that grows at moments at which a fault is most likely to find an error."""

SETTLE_SECONDS = 40
"""Seconds after the last fault within which every session is over."""


class FaultSchedule(Protocol):
    """A sequence of faults."""

    seconds: float
    """Limit in seconds for the whole sequence."""

    async def run(self) -> None:
        """Inject every fault; return once all processes run again."""
        ...


class FaultInjector:
    """Injects random faults until `kills` processes were killed.

    Args:
        cluster: The cluster to disturb.
        seed: The seed of every decision.
        kills: The number of SIGKILLs.
        counters: They grow at good moments for a fault: the model was just asked, a command just ran.
    """

    def __init__(self, cluster: Cluster, seed: str, *, kills: int, counters: Sequence[Counter] = ()) -> None:
        self.kills = 0
        self.seconds: float = 30 + 10 * kills
        self._wanted_kills = kills
        self._counters = counters
        self._cluster = cluster
        self._rng = random.Random(seed)
        self._recoveries = asyncio.TaskGroup()
        self._progress_at_last_kill = 0
        self._kills_without_progress = 0
        """Number of kills in a row between which no counter grew."""

    async def run(self) -> None:
        """Inject the faults; return once all processes run again."""
        async with self._recoveries:
            while self.kills < self._wanted_kills:
                await self._wait_for_moment()
                faults, weights = zip(*self._faults(), strict=True)
                await self._rng.choices(faults, weights)[0]()

    async def _wait_for_moment(self) -> None:
        """Wait for a random time, and sometimes until something happened that is not stored yet."""
        await asyncio.sleep(self._cluster.scaled(self._rng.uniform(0.05, 1)))
        if self._counters and self._kills_without_progress >= 3:
            await self._wait_for_progress()
        counter = self._rng.choice([None, *self._counters])
        if counter is None:
            return
        before = counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while counter() == before:
                    await asyncio.sleep(0.001)

    async def _wait_for_progress(self) -> None:
        """Wait until a counter grows. A busy machine may do nothing between two kills, and the service rightly gives
        up a run after ten deaths without progress."""
        with suppress(AssertionError):
            await eventually(lambda: self._progress() != self._progress_at_last_kill, seconds=self._cluster.scaled(10))

    def _progress(self) -> int:
        return sum(counter() for counter in self._counters)

    def _faults(self) -> list[tuple[Fault, int]]:
        """Return the possible faults with their weights."""
        faults: list[tuple[Fault, int]] = [
            (self._kill_one, 8),
            (self._kill_all, 1),
            (self._terminate, 2),
            (self._suspend, 1),
        ]
        if self._cluster.redis is not None:
            faults += [(self._flush_redis, 1), (self._interrupt_redis, 1)]
        if isinstance(self._cluster.mongod, Mongod):
            faults += [(self._interrupt_mongod, 1)]
        return faults

    def _pick_member(self) -> Member | None:
        """Pick a running process; workers more often, because they have more to lose."""
        running = [member for member in self._cluster.members if member.running and not member.in_transition]
        weights = [3 if member.part == "worker" else 2 for member in running]
        return self._rng.choices(running, weights)[0] if running else None

    async def _kill_one(self) -> None:
        if (member := self._pick_member()) is not None:
            await self._kill(member)

    async def _kill_all(self) -> None:
        members = [member for member in self._cluster.members if member.running and not member.in_transition]
        await asyncio.gather(*(self._kill(member) for member in members))

    async def _kill(self, member: Member) -> None:
        self.kills += 1
        before, self._progress_at_last_kill = self._progress_at_last_kill, self._progress()
        progressed = self._progress_at_last_kill != before
        self._kills_without_progress = 0 if progressed else self._kills_without_progress + 1
        member.in_transition = True
        self._cluster.record(f"SIGKILL {member.name}", disrupts=member.part != "api")
        await member.kill()
        self._recoveries.create_task(self._restart(member))

    async def _terminate(self) -> None:
        if (member := self._pick_member()) is None:
            return
        member.in_transition = True
        self._cluster.record(f"SIGTERM {member.name}", disrupts=member.part != "api")
        seconds = await member.terminate()
        self._cluster.record(f"{member.name} ended in {seconds:.2f} s")
        self._recoveries.create_task(self._restart(member))

    async def _suspend(self) -> None:
        """Suspend a process, perhaps for so long that others take over its runs before it continues."""
        if (member := self._pick_member()) is None:
            return
        member.in_transition = True
        self._cluster.record(f"SIGSTOP {member.name}", disrupts=member.part != "api")
        member.suspend()
        self._recoveries.create_task(self._resume(member))

    async def _resume(self, member: Member) -> None:
        await asyncio.sleep(self._rng.uniform(0, 10 if member.part == "worker" else 2))
        member.resume()
        member.in_transition = False
        self._cluster.record(f"SIGCONT {member.name}", disrupts=member.part == "")

    async def _restart(self, member: Member) -> None:
        """Start a process again: at once or later, but the only one of its part within half a second."""
        alone = not self._cluster.running_members(member.part)
        await asyncio.sleep(self._rng.choice([0.0, 0.0, self._rng.uniform(0, 0.5 if alone else 9)]))
        await member.start()
        member.in_transition = False
        alone = self._cluster.running_members(member.part) == [member]
        self._cluster.record(f"{member.name} runs", disrupts=alone)

    async def _flush_redis(self) -> None:
        self._cluster.record("FLUSHALL")
        assert self._cluster.redis is not None
        await self._cluster.redis.execute("FLUSHALL")

    async def _interrupt_redis(self) -> None:
        redis = self._cluster.redis
        assert redis is not None
        if suspended := self._rng.random() < 0.5:
            redis.freeze()
        else:
            await redis.kill()
        self._cluster.record("Redis is suspended" if suspended else "Redis is killed")
        await asyncio.sleep(self._rng.uniform(0, 3))
        if suspended:
            redis.thaw()
        else:
            await redis.start()
        self._cluster.record("Redis runs")

    async def _interrupt_mongod(self) -> None:
        mongod = self._cluster.mongod
        assert isinstance(mongod, Mongod)
        state, interrupt, recover = self._rng.choice(
            [
                ("killed", mongod.kill, mongod.start),
                ("stopped", mongod.stop, mongod.start),
                ("suspended", mongod.pause, mongod.resume),
            ]
        )
        await asyncio.to_thread(interrupt)
        self._cluster.record(f"mongod is {state}")
        await asyncio.sleep(self._rng.uniform(0, 4))
        await asyncio.to_thread(recover)
        self._cluster.record("mongod runs", disrupts=True)


def progress_counters(model: ScriptedOpenAI, marks: Path) -> list[Counter]:
    """Return counters of the model calls and of the commands that ran."""
    return [lambda: len(model.asked), lambda: marks.stat().st_size if marks.exists() else 0]


async def run_users(
    cluster: Cluster, faults: FaultSchedule, new_session: Callable[[], UserSession], *, users: int
) -> list[UserSession]:
    """Let `users` users work, each in one session after the other, until the faults and their last session are over."""
    finished: list[UserSession] = []
    active: set[UserSession] = set()
    injecting = True

    async def work() -> None:
        while injecting:
            session = new_session()
            active.add(session)
            await session.run()
            active.remove(session)
            finished.append(session)
            cluster.record(f"{session.name} ({session.kind}) is over: {session.session_id}")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(users):
                group.create_task(work())
            async with asyncio.timeout(cluster.scaled(faults.seconds)):
                await faults.run()
            injecting = False
            cluster.record("the last fault is over")
            group.create_task(_wait_for_end(active, cluster.scaled(SETTLE_SECONDS)))
    finally:
        for session in active:
            cluster.record(f"not over: {session}")
    return finished


async def _wait_for_end(active: set[UserSession], seconds: float) -> None:
    await eventually(lambda: not active, seconds=seconds, interval=0.05, message="sessions are not over")


def longest_silence(cluster: Cluster, sessions: Sequence[UserSession]) -> float:
    """Return the longest time in seconds between two events of a run, counted from the last disruption in between."""
    longest = 0.0
    for session in sessions:
        if session.endless:
            continue
        times = session.reader.arrival_times
        for index in range(1, len(times)):
            before, after = times[index - 1], times[index]
            if session.reader.frames[index - 1].event in ("done", "error"):
                continue
            since = max([before, *(at for at in cluster.disruptions if before < at < after)])
            longest = max(longest, after - since)
    return longest

"""What befalls the processes: deaths, farewells, forgotten hints, stores that go away. All of it from one seed."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tests.chaos.lives import Life
from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.cluster import Cluster, Member
from tests.support.stores import Mongod

Act = Callable[[], Awaitable[None]]

CALM_SECONDS = 40
"""After a storm, everything rests by then."""


class Weather(Protocol):
    """What lives are lived through."""

    seconds: float
    """It is over by then."""

    async def rage(self) -> None:
        """Returns when everything is up again."""
        ...


class Storm:
    """Disturbs a cluster until so many of its processes were killed."""

    def __init__(self, cluster: Cluster, seed: str, *, kills: int, counts: Sequence[Callable[[], int]] = ()) -> None:
        """`counts` grow at moments at which something is best disturbed: a model was just asked, a mark just left."""
        self.kills = 0
        self._counts = counts
        self.wanted = kills
        self.seconds: float = 30 + 10 * kills
        self._cluster = cluster
        self._rng = random.Random(seed)
        self._under_way = asyncio.TaskGroup()
        self._done = 0
        """All counts, at the last death."""
        self._idle_deaths = 0
        """Deaths in a row between which nothing was done."""

    async def rage(self) -> None:
        """Returns when everything is up again."""
        async with self._under_way:
            while self.kills < self.wanted:
                await self._moment()
                acts, weights = zip(*self._acts(), strict=True)
                await self._rng.choices(acts, weights)[0]()

    async def _moment(self) -> None:
        """Any moment, or one at which something has just happened that is not stored yet."""
        await asyncio.sleep(self._cluster.patience(self._rng.uniform(0.05, 1)))
        if self._counts and self._idle_deaths >= 3:
            await self._until_something_is_done()
        count = self._rng.choice([None, *self._counts])
        if count is None:
            return
        before = count()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while count() == before:
                    await asyncio.sleep(0.001)

    async def _until_something_is_done(self) -> None:
        """A busy machine may do nothing between two deaths, and a run over which the service died ten times in vain is
        given up, as it should be."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._cluster.patience(10)):
                while sum(count() for count in self._counts) == self._done:
                    await asyncio.sleep(0.01)

    def _acts(self) -> list[tuple[Act, int]]:
        acts: list[tuple[Act, int]] = [(self._kill, 8), (self._kill_all, 1), (self._hand_over, 2), (self._freeze, 1)]
        if self._cluster.redis is not None:
            acts += [(self._flush, 1), (self._redis_away, 1)]
        if isinstance(self._cluster.mongod, Mongod):
            acts += [(self._mongod_away, 1)]
        return acts

    def _victim(self) -> Member | None:
        """Workers die more often than others: they have more to lose."""
        up = [member for member in self._cluster.members if member.up and not member.busy]
        return self._rng.choices(up, [3 if member.part == "worker" else 2 for member in up])[0] if up else None

    async def _kill(self) -> None:
        if (victim := self._victim()) is not None:
            await self._end(victim)

    async def _kill_all(self) -> None:
        await asyncio.gather(*(self._end(member) for member in self._cluster.members if member.up and not member.busy))

    async def _end(self, victim: Member) -> None:
        self.kills += 1
        before, self._done = self._done, sum(count() for count in self._counts)
        self._idle_deaths = self._idle_deaths + 1 if self._done == before else 0
        victim.busy = True
        self._cluster.note(f"SIGKILL {victim.name}", sets_back=victim.part != "api")
        await victim.kill()
        self._under_way.create_task(self._revive(victim))

    async def _hand_over(self) -> None:
        if (victim := self._victim()) is None:
            return
        victim.busy = True
        self._cluster.note(f"SIGTERM {victim.name}", sets_back=victim.part != "api")
        seconds = await victim.hand_over()
        self._cluster.note(f"{victim.name} ended in {seconds:.2f} s")
        self._under_way.create_task(self._revive(victim))

    async def _freeze(self) -> None:
        """It hangs; perhaps for so long that others take over what it had, and it wakes up not knowing."""
        if (victim := self._victim()) is None:
            return
        victim.busy = True
        self._cluster.note(f"SIGSTOP {victim.name}", sets_back=victim.part != "api")
        victim.freeze()
        self._under_way.create_task(self._thaw(victim))

    async def _thaw(self, member: Member) -> None:
        await asyncio.sleep(self._rng.uniform(0, 10 if member.part == "worker" else 2))
        member.thaw()
        member.busy = False
        self._cluster.note(f"SIGCONT {member.name}", sets_back=member.part == "")

    async def _revive(self, member: Member) -> None:
        """At once, or when the others have taken over; the last of its kind is never missed for long."""
        alone = not self._cluster.alive(member.part)
        await asyncio.sleep(self._rng.choice([0.0, 0.0, self._rng.uniform(0, 0.5 if alone else 9)]))
        await member.start()
        member.busy = False
        self._cluster.note(f"{member.name} is up", sets_back=self._cluster.alive(member.part) == [member])

    async def _flush(self) -> None:
        self._cluster.note("FLUSHALL")
        assert self._cluster.redis is not None
        await self._cluster.redis.execute("FLUSHALL")

    async def _redis_away(self) -> None:
        redis = self._cluster.redis
        assert redis is not None
        if frozen := self._rng.random() < 0.5:
            redis.freeze()
        else:
            await redis.kill()
        self._cluster.note("redis is frozen" if frozen else "redis is killed")
        await asyncio.sleep(self._rng.uniform(0, 3))
        if frozen:
            redis.thaw()
        else:
            await redis.start()
        self._cluster.note("redis is back")

    async def _mongod_away(self) -> None:
        mongod = self._cluster.mongod
        assert isinstance(mongod, Mongod)
        name, go, come = self._rng.choice(
            [
                ("killed", mongod.kill, mongod.start),
                ("stopped", mongod.stop, mongod.start),
                ("frozen", mongod.pause, mongod.resume),
            ]
        )
        await asyncio.to_thread(go)
        self._cluster.note(f"mongod is {name}")
        await asyncio.sleep(self._rng.uniform(0, 4))
        await asyncio.to_thread(come)
        self._cluster.note("mongod is back", sets_back=True)


def moments(model: ScriptedOpenAI, marks: Path) -> list[Callable[[], int]]:
    """What grows when the model is asked, and when a mark is left."""
    return [lambda: len(model.asked), lambda: marks.stat().st_size if marks.exists() else 0]


async def live_through(cluster: Cluster, storm: Weather, new_life: Callable[[], Life], *, at_once: int) -> list[Life]:
    """`at_once` lives at any time, one after the other, until the storm is over and the last of them rests."""
    lives: list[Life] = []
    going: set[Life] = set()
    raging = True

    async def one_after_the_other() -> None:
        while raging:
            life = new_life()
            going.add(life)
            await life.live()
            going.remove(life)
            lives.append(life)
            cluster.note(f"{life.name} ({life.kind}) rests: {life.session}")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(one_after_the_other())
            async with asyncio.timeout(cluster.patience(storm.seconds)):
                await storm.rage()
            raging = False
            cluster.note("the storm is over")
            group.create_task(_bounded(going, cluster.patience(CALM_SECONDS)))
    finally:
        for life in going:
            cluster.note(f"does not rest: {life}")
    return lives


async def _bounded(going: set[Life], seconds: float) -> None:
    """Raises when somebody still does not rest long after the storm."""
    async with asyncio.timeout(seconds):
        while going:
            await asyncio.sleep(0.05)


def longest_silence(cluster: Cluster, lives: Sequence[Life]) -> float:
    """Seconds for which a run that should have gone on said nothing, since the last thing that set its cluster back."""
    longest = 0.0
    for life in lives:
        if life.endless:
            continue
        arrived = life.reader.arrival_times
        for index in range(1, len(arrived)):
            before, after = arrived[index - 1], arrived[index]
            if life.reader.frames[index - 1].event in ("done", "error"):
                continue
            since = max([before, *(at for at in cluster.set_back if before < at < after)])
            longest = max(longest, after - since)
    return longest

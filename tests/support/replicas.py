"""A MongoDB replica set of several members: real servers on loopback, which elect, fail over and fall behind."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pymongo
from pymongo.errors import PyMongoError

from tests.support.stores import SET, START_SECONDS, Mongod

_NORMAL = {"PRIMARY", "SECONDARY"}


class ReplicaSet:
    """Servers that hold the same data. `start` before anything else.

    `election_seconds`: how long the others do without a primary before they elect one, and how long a primary does
    without a majority before it steps down; MongoDB's own default is 10.
    """

    def __init__(self, folder: Path, *, members: int = 3, election_seconds: float = 10) -> None:
        # One that copies from a primary that hangs goes on with the new one after two waits of this and a second.
        wait = ["--setParameter", f"oplogNetworkTimeoutBufferSeconds={max(1, round(election_seconds / 2))}"]
        self.members = [Mongod(folder / f"member{number}", arguments=wait) for number in range(members)]
        self._election_seconds = election_seconds

    @property
    def url(self) -> str:
        """What `MONGODB_URL` says of it: every member."""
        return f"mongodb://{','.join(member.address for member in self.members)}/?replicaSet={SET}"

    def start(self) -> None:
        """Start all, and wait until each is there for the others and one can be written."""
        for member in self.members:
            member.launch()
        hosts = [{"_id": number, "host": member.address} for number, member in enumerate(self.members)]
        # Heartbeats come several times in an election's time: a late one is no reason to elect.
        millis = round(self._election_seconds * 1000)
        settings = {"electionTimeoutMillis": millis, "heartbeatIntervalMillis": min(2000, millis // 5)}
        config = {"_id": SET, "members": hosts, "settings": settings}
        first = self.members[0]

        def begins() -> bool:
            # Of a command that takes longer than we wait only its effect tells.
            return "setName" in self._ask(first, {"hello": 1}) or bool(self._ask(first, {"replSetInitiate": config}))

        _until(begins, "it cannot be initiated")
        self.until_whole()

    def kill(self) -> None:
        """All of them are gone at once."""
        for member in self.members:
            member.kill()

    def primary(self) -> Mongod:
        """The member that the others follow and that can be written, once there is one."""
        found: list[Mongod] = []

        def look() -> bool:
            found[:] = self._leaders()
            return bool(found)

        _until(look, "nobody was elected")
        return found[0]

    def secondaries(self) -> list[Mongod]:
        """The others, whatever they are doing."""
        primary = self.primary()
        return [member for member in self.members if member is not primary]

    def step_down(self) -> None:
        """The primary hands over to one of the others, as for maintenance."""
        before = self.primary()
        command = {"replSetStepDown": 10, "secondaryCatchUpPeriodSecs": 5}
        _until(
            lambda: bool(self._ask(before, command)) or self.primary() is not before, "the primary does not step down"
        )

    def be_patient(self, seconds: float) -> None:
        """From now on, `election_seconds` are so many."""

        def change() -> bool:
            primary = self.primary()
            config = self._ask(primary, {"replSetGetConfig": 1}).get("config")
            if config is None:
                return False
            settings = {**config["settings"], "electionTimeoutMillis": round(seconds * 1000)}
            changed = {**config, "version": config["version"] + 1, "settings": settings}
            return bool(self._ask(primary, {"replSetReconfig": changed}))

        _until(change, "it takes no new configuration")

    def until_whole(self) -> None:
        """Wait until every member follows the same primary and has what it has."""
        _until(self._is_whole, "the members do not find together")

    def _is_whole(self) -> bool:
        states = self._ask(self.primary(), {"replSetGetStatus": 1}).get("members", [])
        if [state["stateStr"] in _NORMAL and state["health"] == 1 for state in states] != [True] * len(self.members):
            return False
        dates = [state["optimeDate"] for state in states]
        return (max(dates) - min(dates)).total_seconds() < 2

    def _leaders(self) -> list[Mongod]:
        """Who is a primary, and is taken for one by a majority: one that hangs or was cut off is not."""
        said = {member.address: self._ask(member, {"hello": 1}) for member in self.members}
        votes = Counter(hello.get("primary") for hello in said.values())
        return [
            member
            for member in self.members
            if said[member.address].get("isWritablePrimary") and 2 * votes[member.address] > len(self.members)
        ]

    def _ask(self, member: Mongod, command: Mapping[str, Any]) -> Mapping[str, Any]:
        """The member's answer; empty when it gives none in a second, or refuses."""
        with contextlib.suppress(PyMongoError), _direct(member) as client:
            return client.admin.command(command)
        return {}


@contextlib.contextmanager
def _direct(member: Mongod) -> Iterator["pymongo.MongoClient[dict[str, Any]]"]:
    address = f"mongodb://{member.address}/?directConnection=true"
    with pymongo.MongoClient(address, timeoutMS=1000, serverSelectionTimeoutMS=500) as client:
        yield client


def _until(condition: Callable[[], bool], trouble: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, trouble
        time.sleep(0.05)

"""A MongoDB replica set of real servers on the loopback device."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pymongo
from pymongo.errors import PyMongoError

from tests.support.eventually import wait_until
from tests.support.stores import SET, START_SECONDS, Mongod

_HEALTHY_STATES = {"PRIMARY", "SECONDARY"}


class ReplicaSet:
    """Servers that hold the same data. Call `start` before anything else.

    Args:
        folder: Where each member keeps its data.
        members: The number of members.
        election_seconds: Seconds without a primary after which the others elect one, and without a majority after
            which a primary steps down. MongoDB's default is 10.
    """

    def __init__(self, folder: Path, *, members: int = 3, election_seconds: float = 10) -> None:
        # A member that copies from a suspended primary changes to the new one after two of these waits and a second.
        wait = ["--setParameter", f"oplogNetworkTimeoutBufferSeconds={max(1, round(election_seconds / 2))}"]
        self.members = [Mongod(folder / f"member{number}", arguments=wait) for number in range(members)]
        self._election_seconds = election_seconds

    @property
    def url(self) -> str:
        """The value for `MONGODB_URL`; it names every member."""
        return f"mongodb://{','.join(member.address for member in self.members)}/?replicaSet={SET}"

    def start(self) -> None:
        """Start every member, and wait until all see each other and one accepts writes."""
        for member in self.members:
            member.launch()
        hosts = [{"_id": number, "host": member.address} for number, member in enumerate(self.members)]
        # Several heartbeats per election timeout: one that is late must not cause an election.
        timeout_ms = round(self._election_seconds * 1000)
        settings = {"electionTimeoutMillis": timeout_ms, "heartbeatIntervalMillis": min(2000, timeout_ms // 5)}
        config = {"_id": SET, "members": hosts, "settings": settings}
        first = self.members[0]

        def is_initiated() -> bool:
            # The command may take longer than the client waits: look for its effect first.
            return "setName" in self._run(first, {"hello": 1}) or bool(self._run(first, {"replSetInitiate": config}))

        _wait_for(is_initiated, "the replica set cannot be initiated")
        self.wait_until_in_sync()

    def kill(self) -> None:
        """Kill every member."""
        for member in self.members:
            member.kill()

    def primary(self) -> Mongod:
        """Wait for a primary that a majority follows, and return it."""
        return wait_until(self._primaries, seconds=START_SECONDS, message="no primary was elected")[0]

    def secondaries(self) -> list[Mongod]:
        """Return every member but the primary, whatever state it is in."""
        primary = self.primary()
        return [member for member in self.members if member is not primary]

    def step_down(self) -> None:
        """Make the primary hand over to another member, as for maintenance."""
        before = self.primary()
        command = {"replSetStepDown": 10, "secondaryCatchUpPeriodSecs": 5}
        _wait_for(
            lambda: bool(self._run(before, command)) or self.primary() is not before, "the primary does not step down"
        )

    def set_election_timeout(self, seconds: float) -> None:
        """Change the election timeout to `seconds`."""

        def change() -> bool:
            primary = self.primary()
            config = self._run(primary, {"replSetGetConfig": 1}).get("config")
            if config is None:
                return False
            settings = {**config["settings"], "electionTimeoutMillis": round(seconds * 1000)}
            changed = {**config, "version": config["version"] + 1, "settings": settings}
            return bool(self._run(primary, {"replSetReconfig": changed}))

        _wait_for(change, "the primary accepts no new configuration")

    def wait_until_in_sync(self) -> None:
        """Wait until every member follows the same primary and has its data."""
        _wait_for(self._is_in_sync, "the members are not in sync")

    def _is_in_sync(self) -> bool:
        states = self._run(self.primary(), {"replSetGetStatus": 1}).get("members", [])
        healthy = [state["stateStr"] in _HEALTHY_STATES and state["health"] == 1 for state in states]
        if healthy != [True] * len(self.members):
            return False
        dates = [state["optimeDate"] for state in states]
        return (max(dates) - min(dates)).total_seconds() < 2

    def _primaries(self) -> list[Mongod]:
        """Return the member that is primary and that a majority takes for it; a suspended one is neither."""
        replies = {member.address: self._run(member, {"hello": 1}) for member in self.members}
        votes = Counter(reply.get("primary") for reply in replies.values())
        return [
            member
            for member in self.members
            if replies[member.address].get("isWritablePrimary") and 2 * votes[member.address] > len(self.members)
        ]

    def _run(self, member: Mongod, command: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the reply to a command; empty if the member refuses it or does not reply within a second."""
        with contextlib.suppress(PyMongoError), _connect(member) as client:
            return client.admin.command(command)
        return {}


@contextlib.contextmanager
def _connect(member: Mongod) -> Iterator["pymongo.MongoClient[dict[str, Any]]"]:
    address = f"mongodb://{member.address}/?directConnection=true"
    with pymongo.MongoClient(address, timeoutMS=1000, serverSelectionTimeoutMS=500) as client:
        yield client


def _wait_for(condition: Callable[[], bool], message: str) -> None:
    wait_until(condition, seconds=START_SECONDS, interval=0.05, message=message)

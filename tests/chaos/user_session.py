"""Simulated users: each has one session, from its creation until its last run is over."""

import asyncio
import random
from typing import Any
from uuid import uuid4

import httpx

from tests.support.cluster import Cluster
from tests.support.marking import MarkingModel, run_endless_command, task
from tests.support.reader import ChatReader, RequestRefused
from tests.support.service import ApiClient

KINDS = ("plain", "plain", "interrupt", "interrupt", "duplicate", "stop", "delete")
"""What the user does while the run works: nothing; send a message; send one message twice at the same time; stop the
run; delete the session. Common kinds are named twice."""


class UserSession:
    """One session and its user, who follows the chat and does what `kind` says at the same time."""

    def __init__(self, cluster: Cluster, model: MarkingModel, seed: str) -> None:
        self.name = seed.replace("-", "_")
        self.session_id = ""
        self.reader = ChatReader("")
        self.further_readers: list[ChatReader] = []
        """Readers of the streams that came with further messages."""
        self.accepted: list[str] = []
        """The messages that the service has accepted."""
        self.uncertain: list[str] = []
        """The messages that the service may or may not have stored: sent without a key when the connection broke."""
        self.deleted = False
        self.endless_commands: list[str] = []
        """The unique argument of each endless command that the run started."""
        self.cleanup_certain = True
        """Whether the process that deleted the session is known to have ended its commands too."""
        self._cluster = cluster
        self._rng = random.Random(seed)
        self.kind = self._rng.choice(KINDS)
        if self.endless:
            model.step_scripts[self.name] = run_endless_command(self.endless_commands)
        self._acting = self.kind != "plain"

    @property
    def endless(self) -> bool:
        """Whether the run only ends when the user ends it."""
        return self.kind in ("stop", "delete")

    def __str__(self) -> str:
        frames = "".join(f"\n    {frame.id} {frame.event} {frame.raw.decode()[:300]}" for frame in self.reader.frames)
        state = "acting" if self._acting else "following"
        return f"{self.name} ({self.kind}), {state}, session {self.session_id}, received {frames or 'nothing'}"

    async def run(self) -> None:
        """Use the session until nothing more is to come, or until it is deleted."""
        self.session_id = await self._create()
        self.reader.session_id = self.session_id
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(task(self.name)))
            if self._acting:
                tasks.create_task(self._act())

    async def _is_over(self) -> bool:
        """Return whether the reader has every event and no run is active."""
        if self._acting:
            return False
        session = await self._load_session()
        if session is None:
            return False
        last = int(session["events"][-1]["data"]["event_id"]) if session["events"] else 0
        return session["status"] in ("completed", "pending") and last == self.reader.last_event_number

    async def _load_session(self) -> dict[str, Any] | None:
        """Return the session, or None if it cannot be loaded now."""
        try:
            return await (await self._client()).get_session(self.session_id)
        except httpx.HTTPError:
            return None

    async def _client(self) -> ApiClient:
        return await self._cluster.pick_client(self._rng)

    async def _create(self) -> str:
        while True:
            try:
                response = await (await self._client()).http.put("/api/v1/sessions")
            except httpx.HTTPError:
                continue
            if response.status_code == 200:
                return response.json()["data"]["session_id"]
            assert response.status_code == 503, response.text
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._rng.uniform(0.01, 0.1))

    def _max_bytes(self) -> int | None:
        """Return after how many bytes to drop the next stream; None for never."""
        return None if self._rng.random() < 0.4 else self._rng.randrange(50, 4_000)

    async def _follow(self, message: str) -> None:
        key = None if self._rng.random() < 0.2 else uuid4().hex
        reader = self.reader
        while True:
            try:
                await reader.read((await self._client()).http, message, key=key, max_bytes=self._max_bytes())
            except httpx.HTTPError:
                pass
            except RequestRefused as refused:
                if refused.status == 404 and self.kind == "delete":
                    return
                assert refused.status == 503, refused
            if message and reader.accepted.is_set():
                self.accepted.append(message)
                message = ""
            elif message and key is None:
                self.uncertain.append(message)  # sent again without a key, it could be stored twice
                message = ""
                reader.accepted.set()
            if not message and await self._is_over():
                return
            await self._pause()

    async def _act(self) -> None:
        await self.reader.accepted.wait()
        await asyncio.sleep(self._rng.uniform(0, 1.5))
        match self.kind:
            case "interrupt":
                await self._interrupt(copies=1)
            case "duplicate":
                await self._interrupt(copies=2)
            case "stop":
                await self._stop()
            case _:
                await self._delete()
        self._acting = False

    async def _interrupt(self, *, copies: int) -> None:
        message, key = task(self.name, f"Another thing: {uuid4().hex}"), uuid4().hex
        await asyncio.gather(*(self._send(message, key, number) for number in range(copies)))
        self.accepted.append(message)

    async def _send(self, message: str, key: str, number: int) -> None:
        """Send a message until it is accepted, to API process `number` first."""
        reader = ChatReader(self.session_id, after=self.reader.last_event_number)
        self.further_readers.append(reader)
        first: list[ApiClient] = self._cluster.clients[number : number + 1]
        while not reader.accepted.is_set():
            client = first.pop() if first else await self._client()
            try:
                await reader.read(client.http, message, key=key, max_bytes=self._max_bytes())
            except httpx.HTTPError:
                pass
            except RequestRefused as refused:
                assert refused.status == 503, refused
            await self._pause()

    async def _stop(self) -> None:
        while True:
            try:
                response = await (await self._client()).stop_run(self.session_id)
            except httpx.HTTPError:
                await self._pause()
                continue
            assert response.status_code in (200, 503), response.text
            session = await self._load_session()
            if session is not None:
                status = session["status"]
                if response.status_code == 200 and not self.uncertain:
                    assert status == "completed", f"the status after a stop is {status}"
                if status in ("completed", "pending"):
                    return
            await self._pause()

    async def _delete(self) -> None:
        """Delete the session. After a 503 or a broken connection the outcome is unknown: repeat the request, which
        returns 404 if the session was deleted already."""
        repeated = False
        while True:
            try:
                response = await (await self._client()).http.delete(f"/api/v1/sessions/{self.session_id}")
            except httpx.HTTPError:
                self.cleanup_certain = False
                response = None
            if response is not None and response.status_code != 503:
                assert response.status_code == 200 or (response.status_code == 404 and repeated), response.text
                self.cleanup_certain = self.cleanup_certain and response.status_code == 200
                self.deleted = True
                return
            repeated = True
            await self._pause()

"""What users do while processes die: each life is one session, from its creation until it rests."""

import asyncio
import random
from typing import Any
from uuid import uuid4

import httpx

from tests.support.cluster import Cluster
from tests.support.marking import MarkingModel, endless, task
from tests.support.reader import ChatReader, RequestRefused
from tests.support.service import ApiClient

KINDS = ("plain", "plain", "interrupt", "interrupt", "twice", "stop", "delete")
"""A task left alone; talked into; talked into by the same request sent twice at once; stopped; deleted under way."""


class Life:
    """One session and its user, who has two hands: one follows the chat, the other meddles."""

    def __init__(self, cluster: Cluster, model: MarkingModel, seed: str) -> None:
        self.name = seed.replace("-", "_")
        self.session = ""
        self.reader = ChatReader("")
        self.views: list[ChatReader] = []
        """Further streams of the same session."""
        self.heard: list[str] = []
        """What the user said and the service has taken."""
        self.unsure: list[str] = []
        """What the user said, and nobody knows whether it was taken."""
        self.deleted = False
        self.lengths: list[str] = []
        """Of the endless commands that it ran."""
        self.certain = True
        """Whether the one who was asked for the deletion also answered it."""
        self._cluster = cluster
        self._rng = random.Random(seed)
        self.kind = self._rng.choice(KINDS)
        if self.endless:
            model.answers[self.name] = endless(self.lengths)
        self._meddling = self.kind != "plain"

    @property
    def endless(self) -> bool:
        """Whether its work only ends from outside."""
        return self.kind in ("stop", "delete")

    def __str__(self) -> str:
        frames = "".join(f"\n    {frame.id} {frame.event} {frame.raw.decode()[:300]}" for frame in self.reader.frames)
        hand = "meddling" if self._meddling else "following"
        return f"{self.name} ({self.kind}), {hand}, session {self.session}, saw {frames or 'nothing'}"

    async def live(self) -> None:
        """Until the session rests, or is deleted."""
        self.session = await self._create()
        self.reader.session_id = self.session
        async with asyncio.TaskGroup() as hands:
            hands.create_task(self._follow(task(self.name)))
            if self._meddling:
                hands.create_task(self._meddle())

    async def rests(self) -> bool:
        """Whether the reader has everything, and nothing more is to come."""
        if self._meddling:
            return False
        history = await self._history()
        if history is None:
            return False
        head = int(history["events"][-1]["data"]["event_id"]) if history["events"] else 0
        return history["status"] in ("completed", "pending") and head == self.reader.last_event_number

    async def _history(self) -> dict[str, Any] | None:
        """The session as it is now; None while it cannot be had."""
        try:
            return await (await self._api()).get_session(self.session)
        except httpx.HTTPError:
            return None

    async def _api(self) -> ApiClient:
        return await self._cluster.api(self._rng)

    async def _create(self) -> str:
        while True:
            try:
                answer = await (await self._api()).http.put("/api/v1/sessions")
            except httpx.HTTPError:
                continue
            if answer.status_code == 200:
                return answer.json()["data"]["session_id"]
            assert answer.status_code == 503, answer.text
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._rng.uniform(0.01, 0.1))

    def _cut(self) -> int | None:
        return None if self._rng.random() < 0.4 else self._rng.randrange(50, 4_000)

    async def _follow(self, words: str) -> None:
        key = None if self._rng.random() < 0.2 else uuid4().hex
        reader = self.reader
        while True:
            try:
                await reader.read((await self._api()).http, words, key=key, max_bytes=self._cut())
            except httpx.HTTPError:
                pass
            except RequestRefused as refused:
                if refused.status == 404 and self.kind == "delete":
                    return
                assert refused.status == 503, refused
            if words and reader.accepted.is_set():
                self.heard.append(words)
                words = ""
            elif words and key is None:
                self.unsure.append(words)  # sent again it could be there twice
                words = ""
                reader.accepted.set()
            if not words and await self.rests():
                return
            await self._pause()

    async def _meddle(self) -> None:
        await self.reader.accepted.wait()
        await asyncio.sleep(self._rng.uniform(0, 1.5))
        match self.kind:
            case "interrupt":
                await self._interrupt(hands=1)
            case "twice":
                await self._interrupt(hands=2)
            case "stop":
                await self._stop()
            case _:
                await self._delete()
        self._meddling = False

    async def _interrupt(self, *, hands: int) -> None:
        words, key = task(self.name, f"Another thing: {uuid4().hex}"), uuid4().hex
        await asyncio.gather(*(self._say(words, key, hand) for hand in range(hands)))
        self.heard.append(words)

    async def _say(self, words: str, key: str, hand: int) -> None:
        """Each hand begins with another process."""
        view = ChatReader(self.session, after=self.reader.last_event_number)
        self.views.append(view)
        first: list[ApiClient] = self._cluster.apis[hand : hand + 1]
        while not view.accepted.is_set():
            client = first.pop() if first else await self._api()
            try:
                await view.read(client.http, words, key=key, max_bytes=self._cut())
            except httpx.HTTPError:
                pass
            except RequestRefused as refused:
                assert refused.status == 503, refused
            await self._pause()

    async def _stop(self) -> None:
        while True:
            try:
                answer = await (await self._api()).stop_run(self.session)
            except httpx.HTTPError:
                await self._pause()
                continue
            assert answer.status_code in (200, 503), answer.text
            history = await self._history()
            if history is not None:
                status = history["status"]
                if answer.status_code == 200 and not self.unsure:
                    assert status == "completed", f"stopped, and {status}"
                if status in ("completed", "pending"):
                    return
            await self._pause()

    async def _delete(self) -> None:
        while True:
            try:
                answer = await (await self._api()).http.delete(f"/api/v1/sessions/{self.session}")
            except httpx.HTTPError:
                self.certain = False
                await self._pause()
                continue
            assert answer.status_code in (200, 503) or (answer.status_code == 404 and not self.certain), answer.text
            if answer.status_code != 503:
                self.deleted = True
                return
            await self._pause()

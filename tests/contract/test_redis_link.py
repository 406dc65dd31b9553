"""One connection to a real Redis."""

import asyncio

from app.infrastructure.streams.redis.link import Link, Links
from tests.support.redis_server import RedisServer

MOMENTS = 40
"""Turns of the event loop: more than one question and its answer take."""


async def _talk(link: Link) -> None:
    while True:
        await link.send([("PING",)])
        await link.receive()


async def test_who_talks_can_be_cut_off_at_any_moment() -> None:
    async with RedisServer() as server:
        for moment in range(MOMENTS):
            link = Links(server.url).link()
            await link.open()
            talking = asyncio.create_task(_talk(link))
            for _ in range(moment):
                await asyncio.sleep(0)
            talking.cancel()
            await asyncio.wait([talking], timeout=15)
            assert talking.cancelled(), f"deaf to it after {moment} turns"
            await link.close()

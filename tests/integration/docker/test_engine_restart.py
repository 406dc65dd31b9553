"""The engine is started anew under a service that goes on. Everybody's containers end with it, so it is done on demand:

ANKER_RESTART_ENGINE='systemctl restart docker' pytest tests/integration/docker/test_engine_restart.py
"""

import os
import subprocess

import pytest

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.docker import life
from tests.integration.docker.site import run, site
from tests.integration.docker.world import World, answers
from tests.support.eventually import eventually

COMMAND = os.environ.get("ANKER_RESTART_ENGINE", "")

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not COMMAND, reason="ANKER_RESTART_ENGINE is not set: it would end everybody's containers"),
]


async def test_after_a_restart_of_the_engine_sandboxes_come_back_with_their_files_and_behind_their_rules(
    engine: None, beyond: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "FRESH_SECONDS", 0.0)
    async with site() as here, here.provider(pool_size=1) as service:
        session, untouched = here.session(), here.session()
        first = await service.acquire(session)
        await service.acquire(untouched)
        await first.file_write("kept.txt", "still here", append=False, sudo=False)
        subprocess.run(COMMAND, shell=True, check=True)

        async def well() -> bool:
            return await service.check() is None

        await eventually(well, seconds=60)
        with pytest.raises(SandboxUnavailable):
            await run(first, "true")
        second = await service.acquire(session)
        assert second.instance_id != first.instance_id
        assert await run(second, "cat kept.txt") == (0, "still here")
        assert answers(beyond.private) and answers(beyond.metadata)
        for place in (beyond.private, beyond.metadata):
            assert (await run(second, f"curl -s --max-time 5 http://{place}/"))[0] == 7
        assert (await run(second, f"curl -s --max-time 5 http://{beyond.allowed}/"))[0] == 0
        await service.reap()
        assert here.container(untouched) is None and here.name(untouched) in here.volumes()
        await eventually(lambda: service._site.pool._waiting)
        for each in (session, untouched):
            await service.destroy(each)

"""A restart of the engine under a running service. It ends everybody's containers, so it runs on demand only:

ANKER_RESTART_ENGINE='systemctl restart docker' pytest tests/integration/docker/test_engine_restart.py
"""

import os
import subprocess

import pytest

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.client import running_sandbox
from tests.integration.docker.engine_sandbox import engine_sandbox, read, run, write
from tests.integration.docker.external_network import ExternalNetwork, responds
from tests.support.eventually import eventually

COMMAND = os.environ.get("ANKER_RESTART_ENGINE", "")

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not COMMAND, reason="ANKER_RESTART_ENGINE is not set: it would end everybody's containers"),
]


async def test_restart_of_engine_restores_sandboxes_with_files_and_firewall(
    docker_ready: None, external: ExternalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_sandbox, "FRESH_SECONDS", 0.0)
    async with engine_sandbox() as engine, engine.provider(pool_size=1) as provider:
        session, unused = engine.new_session(), engine.new_session()
        first = await provider.acquire(session)
        await provider.acquire(unused)
        await write(first, "kept.txt", "still here")
        subprocess.run(COMMAND, shell=True, check=True)

        async def is_available() -> bool:
            return await provider.check() is None

        await eventually(is_available, seconds=60)
        with pytest.raises(SandboxUnavailable):
            await run(first, "true")
        second = await provider.acquire(session)
        assert second.instance_id != first.instance_id
        assert await read(second, "kept.txt") == "still here"
        assert responds(external.private) and responds(external.metadata)
        for address in (external.private, external.metadata):
            assert (await run(second, f"curl -s --max-time 5 http://{address}/"))[0] == 7
        assert (await run(second, f"curl -s --max-time 5 http://{external.allowed}/"))[0] == 0
        await provider.reap()
        assert not engine.has_container(unused) and engine.has_volume(unused)
        await eventually(lambda: provider.pool.ready_ids)
        for each in (session, unused):
            await provider.destroy(each)

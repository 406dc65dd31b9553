"""Upgrade: a store that the previous version wrote, with open sessions, goes on with this version.

`upgrade/` has a backup of each store with four sessions, and their histories as that version returned them. They were
made with the program of commit 11096a8 and the model of `test_backup.py`. The process was killed during the tool call
of the session "sleep".
"""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from app.backup import load
from app.settings import load_settings
from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.integration.test_backup import STORES, script
from tests.support.cluster import SandboxProcess
from tests.support.invariants import check_log
from tests.support.service import ApiClient, ServiceProcess
from tests.support.stores import Mongod, require_mongod

FOLDER = Path(__file__).parent / "upgrade"
HISTORIES: dict[str, dict[str, dict[str, Any]]] = json.loads((FOLDER / "histories.json").read_text())
"""The session data of the previous version, by store and word."""


async def restored_settings(store: str, stack: AsyncExitStack, folder: Path) -> dict[str, str]:
    """Restore the store of the previous version, and return the settings that name it."""
    settings: dict[str, str] = {}
    if store == "mongodb":
        require_mongod()
        mongod = Mongod(folder / "mongod")
        await asyncio.to_thread(mongod.start)
        stack.callback(mongod.kill)
        settings = {"MONGODB_URL": mongod.url, "MONGODB_DATABASE": "upgraded"}
    values: dict[str, object] = {name.lower(): value for name, value in settings.items()}
    chosen = load_settings(_env_file=None, data_dir=folder / "data", **values)
    await asyncio.to_thread(load, chosen, FOLDER / f"{store}.backup", replace=True)
    return settings


def includes(new: Any, old: Any) -> bool:
    """Return whether `new` has everything that `old` has; a newer version may add fields to objects."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(name in new and includes(new[name], value) for name, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(new) == len(old) and all(map(includes, new, old))
    return new == old


@pytest.mark.parametrize("store", STORES)
async def test_open_sessions_of_previous_version_go_on(store: str, tmp_path: Path) -> None:
    sessions = HISTORIES[store]
    async with AsyncExitStack() as stack:
        model = stack.enter_context(ScriptedOpenAI(script))
        sandbox = await stack.enter_async_context(SandboxProcess(tmp_path / "sandbox"))
        stores = await restored_settings(store, stack, tmp_path)
        settings = {"API_KEY": "sk-0123456789", "API_BASE": model.url, **sandbox.settings, **stores}
        service = ServiceProcess(tmp_path / "data", **settings)
        client: ApiClient = await service.start()
        stack.push_async_callback(service.stop)
        stack.push_async_callback(client.close)

        for word in ("write", "ask", "nothing"):
            assert includes(await client.get_session(sessions[word]["session_id"]), sessions[word]), word
        resumed = await (await client.open_chat(sessions["sleep"]["session_id"], {})).read_all()
        before = sessions["sleep"]["events"]
        assert [frame.event for frame in resumed[: len(before)]] == [event["event"] for event in before]
        called = next(frame.data for frame in resumed[len(before) :] if frame.event == "tool")
        assert (called["status"], called["result"]["success"]) == ("called", False)
        assert resumed[-1].event == "done"
        for word, message in (("ask", "Blue."), ("write", "Again."), ("nothing", "please write")):
            frames = await client.send_and_read(sessions[word]["session_id"], message)
            assert frames[-1].event == "done", word
        for word in sessions:
            check_log((await client.get_session(sessions[word]["session_id"]))["events"])

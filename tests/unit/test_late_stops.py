"""A stop request that arrives late or twice stops only the run that it was meant for."""

import pytest

from app.domain.errors import StoreUnavailable, Superseded
from app.domain.models.event import DoneEvent
from app.domain.models.plan import Plan, Step
from app.domain.models.run import Checkpoint
from app.domain.models.tool import OpenCall
from app.domain.repositories.event_log import Commit
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_store import MemoryStore
from tests.support.agent_runs import make_worker

PLAN = Plan(goal="g", steps=(Step(id="1", description="one", status="running"),))
OPEN_CALL = OpenCall(id="c", toolkit="shell", function="shell_exec", args={"id": "a", "exec_dir": "~", "command": "x"})


@pytest.fixture
async def store() -> MemoryStore:
    """Return a store with a session whose first run ended with event 2; the second one reads message 3."""
    store = MemoryStore()
    await store.create("s", owner="", at=1)
    await store.append_user_message("s", "first", at=1, key=None)
    await store.commit("s", Commit(timestamp=1, events=[DoneEvent()], checkpoint=Checkpoint(last_read_message=1)))
    await store.append_user_message("s", "second", at=1, key=None)
    executing = Checkpoint(phase="executing", last_read_message=3, plan=PLAN, open_calls=(OPEN_CALL,))
    await store.commit("s", Commit(timestamp=1, checkpoint=executing))
    return store


async def test_stop_of_an_earlier_run_leaves_the_current_run_alone(store: MemoryStore) -> None:
    with pytest.raises(Superseded):
        await make_worker(store).finish_stopped("s", up_to=2, fencing_token=None)
    assert (await store.load_checkpoint("s")).phase == "executing"
    assert (await store.get("s", owner="")).status == "running"


async def test_stop_of_the_current_run_ends_it(store: MemoryStore) -> None:
    await make_worker(store).finish_stopped("s", up_to=3, fencing_token=None)
    assert (await store.load_checkpoint("s")).phase == "idle"
    assert (await store.get("s", owner="")).status == "completed"


async def test_stop_of_an_earlier_run_after_all_runs_have_ended_stores_nothing(store: MemoryStore) -> None:
    await make_worker(store).finish_stopped("s", up_to=3, fencing_token=None)
    before = (await store.get("s", owner="")).last_event_number
    await make_worker(store).finish_stopped("s", up_to=2, fencing_token=None)
    assert (await store.get("s", owner="")).last_event_number == before


async def test_stop_loads_the_checkpoint_once_and_kills_everything_in_the_sandbox(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = 0
    load_checkpoint = store.load_checkpoint

    async def count_loads(session_id: str) -> Checkpoint:
        nonlocal loads
        loads += 1
        return await load_checkpoint(session_id)

    monkeypatch.setattr(store, "load_checkpoint", count_loads)
    sandboxes = MemorySandboxProvider()
    sandbox = await sandboxes.acquire("s")
    sandbox.script("serve", runs=True)
    await sandbox.shell_exec("other", "~", "serve")
    assert sandbox.running() == ["serve"]
    await make_worker(store, sandboxes=sandboxes).finish_stopped("s", up_to=3, fencing_token=None)
    assert sandbox.running() == []
    assert loads == 1


async def test_stop_ends_the_run_when_killing_fails_unexpectedly(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail_unexpectedly() -> None:
        raise RuntimeError("bug")

    sandboxes = MemorySandboxProvider()
    monkeypatch.setattr(await sandboxes.acquire("s"), "kill_all", fail_unexpectedly)
    await make_worker(store, sandboxes=sandboxes).finish_stopped("s", up_to=3, fencing_token=None)
    assert (await store.get("s", owner="")).status == "completed"


async def test_stop_while_the_store_is_unavailable_fails_at_once(store: MemoryStore) -> None:
    store.trouble = "away"
    with pytest.raises(StoreUnavailable):
        await make_worker(store).finish_stopped("s", up_to=3, fencing_token=None)

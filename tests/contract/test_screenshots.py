"""What every store promises about screenshots."""

import pytest

from app.domain.errors import NotFound
from tests.contract.conftest import Harness

JPEG = b"\xff\xd8" + bytes(range(256)) * 200


async def test_a_screenshot_comes_back_byte_for_byte_also_after_a_restart(store: Harness) -> None:
    await store.screenshots.put("s", "p1", JPEG)
    await store.screenshots.put("s", "p2", b"")
    await store.close()
    await store.open()
    assert await store.screenshots.get("s", "p1") == JPEG
    assert await store.screenshots.get("s", "p2") == b""


async def test_a_screenshot_is_found_in_its_own_session_only(store: Harness) -> None:
    await store.sessions.create("other", owner="me", at=1)
    await store.screenshots.put("s", "p", JPEG)
    for session, screenshot in (("other", "p"), ("s", "q"), ("gone", "p")):
        with pytest.raises(NotFound):
            await store.screenshots.get(session, screenshot)


async def test_no_screenshot_is_kept_for_a_session_that_does_not_exist(store: Harness) -> None:
    with pytest.raises(NotFound):
        await store.screenshots.put("gone", "p", JPEG)


async def test_screenshots_go_with_their_session(store: Harness) -> None:
    await store.sessions.create("other", owner="me", at=1)
    await store.screenshots.put("other", "kept", JPEG)
    for number in range(250):
        await store.screenshots.put("s", f"p{number}", JPEG)
    await store.sessions.delete("s", owner="me")
    with pytest.raises(NotFound):
        await store.screenshots.get("s", "p0")
    await store.sessions.create("s", owner="me", at=2)
    with pytest.raises(NotFound):
        await store.screenshots.get("s", "p0")
    assert await store.screenshots.get("other", "kept") == JPEG

"""Contract of the `ScreenshotRepository` port, for the fake and for every store."""

import pytest

from app.domain.errors import NotFound
from tests.contract.conftest import Harness

JPEG = b"\xff\xd8" + bytes(range(256)) * 200


async def test_screenshot_after_reopening_is_byte_for_byte_the_same(store: Harness) -> None:
    await store.screenshots.put("s", "p1", JPEG)
    await store.screenshots.put("s", "p2", b"")
    await store.close()
    await store.open()
    assert await store.screenshots.get("s", "p1") == JPEG
    assert await store.screenshots.get("s", "p2") == b""


async def test_screenshot_is_found_only_in_its_session(store: Harness) -> None:
    await store.sessions.create("other", owner="me", at=1)
    await store.screenshots.put("s", "p", JPEG)
    for session, screenshot in (("other", "p"), ("s", "q"), ("gone", "p")):
        with pytest.raises(NotFound):
            await store.screenshots.get(session, screenshot)


async def test_put_for_a_missing_session_raises_not_found(store: Harness) -> None:
    with pytest.raises(NotFound):
        await store.screenshots.put("gone", "p", JPEG)


async def test_screenshots_are_deleted_with_their_session(store: Harness) -> None:
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

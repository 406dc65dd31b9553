"""The endpoint for screenshots of a session."""

import httpx
import pytest

from tests.support.api_harness import API, ApiHarness

JPEG = b"\xff\xd8\xff\xe0 a screenshot"


async def test_screenshot_is_served_from_its_address_and_cacheable(harness: ApiHarness) -> None:
    address = await harness.screenshots.keep(await harness.create_session(), JPEG)
    answer = await harness.client.get(address)
    assert answer.status_code == 200
    assert answer.content == JPEG
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"].startswith("private")
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_screenshot_addresses_are_unpredictable(harness: ApiHarness) -> None:
    session = await harness.create_session()
    addresses = {await harness.screenshots.keep(session, JPEG) for _ in range(50)}
    assert len(addresses) == 50
    assert all(len(address.rpartition("/")[2]) >= 20 for address in addresses)


async def test_unknown_screenshot_returns_404_envelope(harness: ApiHarness) -> None:
    session = await harness.create_session()
    address = await harness.screenshots.keep(session, JPEG)
    other = await harness.create_session()
    for path in (f"/api/v1/sessions/{session}/pictures/none", address.replace(session, other)):
        answer = await harness.client.get(path)
        assert answer.status_code == 404
        assert answer.json()["data"] is None


async def test_screenshot_is_deleted_with_its_session(harness: ApiHarness) -> None:
    session = await harness.create_session()
    address = await harness.screenshots.keep(session, JPEG)
    await harness.client.delete(f"/api/v1/sessions/{session}")
    assert (await harness.client.get(address)).status_code == 404


@pytest.mark.parametrize("picture_id", ["a" * 65, "a" * 5000, "%00", "%ff", "a b"])
async def test_id_that_no_screenshot_can_have_returns_404(
    harness: ApiHarness, client: httpx.AsyncClient, picture_id: str
) -> None:
    assert (await client.get(f"{API}/{await harness.create_session()}/pictures/{picture_id}")).status_code == 404

"""Fetching a session's screenshots."""

from tests.support.api_harness import ApiHarness

JPEG = b"\xff\xd8\xff\xe0 a screenshot"


async def test_a_screenshot_is_fetched_from_its_address_and_may_be_kept_by_its_owner(harness: ApiHarness) -> None:
    address = await harness.screenshots.keep(await harness.create_session(), JPEG)
    answer = await harness.client.get(address)
    assert answer.status_code == 200
    assert answer.content == JPEG
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"].startswith("private")
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_addresses_cannot_be_guessed_from_one_another(harness: ApiHarness) -> None:
    session = await harness.create_session()
    addresses = {await harness.screenshots.keep(session, JPEG) for _ in range(50)}
    assert len(addresses) == 50
    assert all(len(address.rpartition("/")[2]) >= 20 for address in addresses)


async def test_no_screenshot_is_answered_with_404_in_the_envelope(harness: ApiHarness) -> None:
    session = await harness.create_session()
    address = await harness.screenshots.keep(session, JPEG)
    other = await harness.create_session()
    for path in (f"/api/v1/sessions/{session}/pictures/none", address.replace(session, other)):
        answer = await harness.client.get(path)
        assert answer.status_code == 404
        assert answer.json()["data"] is None


async def test_a_screenshot_is_gone_with_its_session(harness: ApiHarness) -> None:
    session = await harness.create_session()
    address = await harness.screenshots.keep(session, JPEG)
    await harness.client.delete(f"/api/v1/sessions/{session}")
    assert (await harness.client.get(address)).status_code == 404

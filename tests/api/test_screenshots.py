"""Fetching a session's screenshots."""

from tests.api.house import House

JPEG = b"\xff\xd8\xff\xe0 a screenshot"


async def test_a_screenshot_is_fetched_from_its_address_and_may_be_kept_by_its_owner(house: House) -> None:
    address = await house.screenshots.keep(await house.new(), JPEG)
    answer = await house.client.get(address)
    assert answer.status_code == 200
    assert answer.content == JPEG
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"].startswith("private")
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_addresses_cannot_be_guessed_from_one_another(house: House) -> None:
    session = await house.new()
    addresses = {await house.screenshots.keep(session, JPEG) for _ in range(50)}
    assert len(addresses) == 50
    assert all(len(address.rpartition("/")[2]) >= 20 for address in addresses)


async def test_no_screenshot_is_answered_with_404_in_the_envelope(house: House) -> None:
    session = await house.new()
    address = await house.screenshots.keep(session, JPEG)
    other = await house.new()
    for path in (f"/api/v1/sessions/{session}/pictures/none", address.replace(session, other)):
        answer = await house.client.get(path)
        assert answer.status_code == 404
        assert answer.json()["data"] is None


async def test_a_screenshot_is_gone_with_its_session(house: House) -> None:
    session = await house.new()
    address = await house.screenshots.keep(session, JPEG)
    await house.client.delete(f"/api/v1/sessions/{session}")
    assert (await house.client.get(address)).status_code == 404

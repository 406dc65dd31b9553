"""When a primary counts as left alone by the others, without a server."""

from typing import Any

from bson import Timestamp

from app.infrastructure.persistence.mongo.driver import NOBODY
from app.infrastructure.persistence.mongo.majority import ALONE, NEW, Majority


def says(written: int, confirmed: int, *, term: int = 1, confirmed_term: int | None = None) -> dict[str, Any]:
    """What a primary answers that has written so much, and knows a majority to have so much."""
    places = {
        "opTime": (written, term),
        "majorityOpTime": (confirmed, term if confirmed_term is None else confirmed_term),
    }
    last = {name: {"ts": Timestamp(1_000, place), "t": office} for name, (place, office) in places.items()}
    return {"isWritablePrimary": True, "lastWrite": last}


def test_a_primary_whose_writes_reach_a_majority_is_well_however_much_is_under_way() -> None:
    majority = Majority()
    # Each is confirmed a second after it was written.
    assert all(majority.trouble(says(n + 5, n), now=n / 5) is None for n in range(20))


def test_a_write_that_too_few_have_for_two_seconds_means_that_a_majority_is_gone_until_it_has_it() -> None:
    majority = Majority()
    assert majority.trouble(says(5, 5), now=0) is None
    assert majority.trouble(says(6, 5), now=60) is None  # nothing was written in between
    assert majority.trouble(says(7, 5), now=61) is None
    assert majority.trouble(says(8, 5), now=62) == ALONE
    assert majority.trouble(says(8, 5), now=90) == ALONE
    assert majority.trouble(says(8, 6), now=91) is None
    assert majority.trouble(says(8, 6), now=93) == ALONE  # and now it waits for the eighth
    assert majority.trouble(says(8, 8), now=94) is None


def test_a_new_primary_is_believed_when_a_majority_has_something_of_its_own_time() -> None:
    majority = Majority()
    assert majority.trouble(says(9, 5), now=0) is None
    assert majority.trouble(says(7, 5, term=2, confirmed_term=1), now=1) == NEW
    assert majority.trouble(says(7, 7, term=2), now=3) is None  # what the old one alone had is gone, and not waited for


def test_one_that_is_no_primary_any_more_cannot_be_written() -> None:
    assert Majority().trouble({"isWritablePrimary": False}, now=0) == NOBODY


def test_a_router_is_believed() -> None:
    assert Majority().trouble({"isWritablePrimary": True, "msg": "isdbgrid"}, now=0) is None

"""Who has a session's local sandbox: the lock, the record and the note that a session was deleted."""

import os
from pathlib import Path

from app.infrastructure.sandbox.claims import Claims, Record
from app.infrastructure.sandbox.ledger import Identity


def record(*, child: Identity | None = None) -> Record:
    own = Identity.of(os.getpid())
    return Record(
        session_id="s1",
        computer="c1",
        address="http://127.0.0.1:1",
        token="t",
        home="/h",
        child=child or own,
        maker=own,
    )


def names(root: Path) -> set[str]:
    return {path.name for path in (root / ".running").iterdir()}


def test_a_session_has_one_holder_until_he_releases_it(tmp_path: Path) -> None:
    ours, theirs = Claims(tmp_path), Claims(tmp_path)
    assert not theirs.held("s1")
    claim = ours.claim("s1")
    assert claim is not None and theirs.held("s1") and theirs.claim("s1") is None
    assert theirs.claim("s2") is not None
    claim.release()
    claim.release()
    assert not theirs.held("s1")
    again = theirs.claim("s1")
    assert again is not None and not again.stale


def test_what_is_published_is_found_until_it_is_retracted(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    claim = claims.claim("s1")
    assert claim is not None and claims.living("s1") is None
    claim.publish(record())
    assert claims.living("s1") == record()
    claim.retract()
    assert claims.living("s1") is None
    claim.publish(record())
    claim.release()
    assert names(tmp_path) == set()


def test_a_released_claim_does_not_touch_what_the_next_holder_publishes(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    first = claims.claim("s1")
    assert first is not None
    first.release()
    second = claims.claim("s1")
    assert second is not None
    second.publish(record())
    first.retract()
    first.release()
    assert claims.living("s1") is not None and claims.held("s1")


def test_the_record_of_a_holder_that_died_is_handed_to_the_next(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    claim = claims.claim("s1")
    assert claim is not None
    claim.publish(record())
    claim._lock.close()  # as the kernel does
    after = claims.claim("s1")
    assert after is not None and after.stale and after.left == record()


def test_a_process_that_was_given_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    claim = claims.claim("s1")
    assert claim is not None
    own = Identity.of(os.getpid())
    claim.publish(record(child=Identity(own.pid, own.started - 60)))
    assert claims.living("s1") is None


def test_every_deletion_can_be_told_from_the_one_before_and_is_forgotten_in_the_end(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    assert claims.condemned("s1") == 0
    claims.condemn("s1")
    first = claims.condemned("s1")
    os.utime(tmp_path / ".running" / "s1.gone", (0, 0))
    claims.condemn("s1")
    assert claims.condemned("s1") >= first > 0 and claims.names() == set()
    claims.tidy()
    assert names(tmp_path) == {"s1.gone"}
    os.utime(tmp_path / ".running" / "s1.gone", (0, 0))
    claims.tidy()
    assert names(tmp_path) == set()

"""What is left of local sandboxes whose makers were killed. Everything here blocks: call it in a thread."""

from collections.abc import Collection, Iterable

from app.infrastructure.sandbox.claims import Claim, Claims
from app.infrastructure.sandbox.client.shell_ids import encode_scope
from app.infrastructure.sandbox.ledger import Ledger, end_family
from app.infrastructure.sandbox.process import GRACE_SECONDS
from app.infrastructure.sandbox.workspace import Place, Places


def end_left_over(claims: Collection[Claim], ledger: Ledger, *, marked: Collection[str] = ()) -> int:
    """End what the makers that held these `claims` before have left; answers how many processes there were.

    `marked` are ids of claimed sessions that are known to have processes; they may have no record.
    """
    left = [claim.left for claim in claims if claim.left is not None]
    # Not by their marks only: a sandbox hides its environment from all but root.
    ended = sum(end_family(record.child, grace=GRACE_SECONDS) for record in left)
    sessions = {record.session_id for record in left}.union(marked)
    return ended + (ledger.kill(sessions) if sessions else 0)


def clear_up(claims: Claims, ledger: Ledger, places: Places) -> int:
    """End the processes of every session that no living service has, and finish the deletions that one had begun.

    Answers how many processes there were.

    Raises:
        OSError: the data folder cannot be written to.
    """
    places.root.mkdir(parents=True, exist_ok=True)
    marked = {encode_scope(session_id): session_id for session_id in ledger.sessions()}
    held: dict[str, Claim] = {}
    try:
        for name in claims.names().union(marked):
            if (claim := claims.claim(name)) is not None:
                held[name] = claim
        ours = [session_id for name, session_id in marked.items() if name in held]
        ended = end_left_over(held.values(), ledger, marked=ours)
    finally:
        for claim in held.values():
            claim.release()
    claims.tidy()
    places.empty_trash()
    return ended


def remove_strays(names: Iterable[str], claims: Claims, ledger: Ledger, places: Places) -> int:
    """Delete these sessions' folders, but for those of sessions that a living service has; answers how many.

    Raises:
        OSError: the data folder cannot be written to.
    """
    removed = 0
    for name in names:
        if (claim := claims.claim(name)) is None:
            continue
        try:
            end_left_over([claim], ledger)
            places.remove(Place(places.root / name))
            removed += 1
        finally:
            claim.release()
    return removed

"""What is kept in MongoDB, and the indexes over it. Made at every start; many processes may do it at once.

    sessions     `_id` the session's id; `ordinal` by creation; `owner`, `title`, `status`, `latest_message`,
                 `latest_message_at`, `created_at`, `touched`; `head`, `last_words`: numbers of the newest event and of
                 the user's newest message; `delivered`, `unread`; `talk`, `work`: lengths of the transcripts; `usage`;
                 `run`: the checkpoint's JSON, `revision`: its name; `lease`: `{holder, until, token}`; `stop_up_to`
                 while a stop is asked for; `version`: counts the changes; `tail`: the rows of the newest change
    events       `_id` as in `rows.py`, `type`, `speaker`, `data`: the encoder's very bytes
    transcripts  `_id` as in `rows.py`, `data`
    keys         `_id` `{s: ordinal, k: key}`, `number`
    screenshots     `_id` `{s: ordinal, k: id}`, `data`
    tickets      `_id` the digest, `session` (its ordinal), `owner`, `view_only`, `expires_at`
    leaving      `_id` the ordinal of a deleted session, `at`
    facts        `_id`, `value`: the version of all this, the installation's id
    counters     `_id`, `value`: the newest ordinal

A change is one update of its session's document: whole or not at all, without a transaction. (One that was left open
by a process that was killed would lock the document for everybody, for a minute and more.) The rows of the change are
a part of that update, `tail`, and are then copied to where rows lie; the next change replaces the tail, and whoever
makes it sees to it first that the copy is there. Readers put what they find in the tail behind what they find in rows.
"""

import secrets
from dataclasses import dataclass

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.mongo.collection import Collection, Document
from app.infrastructure.persistence.mongo.driver import Driver

VERSION = 1
"""Of the shape above."""

SPOKEN = "spoken"
"""The index of the events that are messages, which are few among many."""

# Partial, so that looking for work does not walk over the sessions that rest.
_ACTIVE: Document = {"status": "active"}
_ASKED: Document = {"stop_up_to": {"$exists": True}}
_HELD: Document = {"lease.holder": {"$gt": ""}}
_SPOKEN: Document = {"speaker": {"$exists": True}}

_INDEXES: dict[str, list[Document]] = {
    "sessions": [
        {"name": "ordinal", "key": {"ordinal": 1}, "unique": True},
        {"name": "listed", "key": {"owner": 1, "touched": -1, "ordinal": -1}},
        {"name": "active", "key": {"status": 1, "lease.until": 1}, "partialFilterExpression": _ACTIVE},
        {"name": "stopping", "key": {"stop_up_to": 1}, "partialFilterExpression": _ASKED},
        {"name": "held", "key": {"lease.holder": 1}, "partialFilterExpression": _HELD},
    ],
    "events": [{"name": SPOKEN, "key": {"speaker": 1, "_id": 1}, "partialFilterExpression": _SPOKEN}],
    "tickets": [
        {"name": "waiting", "key": {"session": 1, "expires_at": 1}},
        {"name": "expiring", "key": {"expires_at": 1}},
    ],
}

_PREPARE_SECONDS = 20.0
"""For indexes that are made, and nothing else: afterwards it is one look at what is there."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The collections."""

    sessions: Collection
    events: Collection
    transcripts: Collection
    keys: Collection
    screenshots: Collection
    tickets: Collection
    leaving: Collection
    facts: Collection
    counters: Collection


def tables_of(driver: Driver) -> Tables:
    """The collections of an open driver."""
    return Tables(
        sessions=driver.collection("sessions"),
        events=driver.collection("events"),
        transcripts=driver.collection("transcripts"),
        keys=driver.collection("keys"),
        screenshots=driver.collection("pictures"),
        tickets=driver.collection("tickets"),
        leaving=driver.collection("leaving"),
        facts=driver.collection("facts"),
        counters=driver.collection("counters"),
    )


async def prepare(driver: Driver, tables: Tables) -> str:
    """Look at the server, make what is missing; answers the installation's id.

    Raises:
        StoreUnavailable: it is no replica set, or a newer program wrote the database.
        Exception: one of the driver's `failures`.
    """
    hello = await driver.command("hello")
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise StoreUnavailable(
            "MONGODB_URL: the server is no replica set, which is what keeps writes safe: start it with --replSet NAME"
            " and call rs.initiate() once; one member is enough"
        )
    with driver.within(_PREPARE_SECONDS):
        found = await _fact(driver, tables, "version", VERSION)
        if not isinstance(found, int) or found > VERSION:
            raise StoreUnavailable(
                f"MONGODB_DATABASE: the database has version {found}, this program knows up to {VERSION}:"
                " use a newer program"
            )
        for name, indexes in _INDEXES.items():
            await driver.make_indexes(name, indexes)
        return str(await _fact(driver, tables, "installation", secrets.token_hex(8)))


async def _fact(driver: Driver, tables: Tables, name: str, value: object) -> object:
    """The fact that is there, or `value`, which is then it."""
    known = await tables.facts.find_one({"_id": name})
    if known is None:
        try:
            await tables.facts.insert_one({"_id": name, "value": value})
            return value
        except driver.failures as error:
            if not driver.is_duplicate(error):
                raise
            known = await tables.facts.find_one({"_id": name})
    return None if known is None else known["value"]

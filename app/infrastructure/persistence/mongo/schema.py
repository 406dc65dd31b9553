"""Collections of the MongoDB store, with their fields and indexes.

    sessions      `_id`: id of the session; `ordinal`: number by creation; `owner`, `title`, `status`, `latest_message`,
                  `latest_message_at`, `created_at`, `last_activity`; `last_event`, `last_user_message`: event numbers;
                  `delivered`, `unread`; `planner_messages`, `executor_messages`: lengths of the transcripts;
                  `prompt_tokens`, `cached_tokens`, `completion_tokens`, `reasoning_tokens`, `calls`, `cost`: usage;
                  `model`: model profile; `given_title`: title by the user; `is_pinned`; `origin` of the newest user
                  message, for traces; `checkpoint`, its `revision`; `lease`: `{holder, until, token}`;
                  `waiting_since`: time of the newest user message, or of the last release of the lease; `stop_up_to`
                  while a stop is requested; `version`: number of updates; `tail`: rows of the last update
    events        `_id`: event key (see `codec.py`); `type`, `speaker`, `data`: the encoded event
    transcripts   `_id`: transcript key; `data`: the encoded message
    message_keys  `_id`: `{s: ordinal, k: idempotency key}`; `number`: number of the message
    screenshots   `_id`: `{s: ordinal, k: id}`; `data`: the JPEG
    tickets       `_id`: digest; `session`: ordinal; `owner`, `view_only`, `expires_at`
    daily_tokens  `_id`: owner; `day`: newest day of a commit, in days since the epoch; `tokens`: of all runs on it
    deletions     `_id`: ordinal of a deleted session; `at`: time of the deletion
    metadata      `_id`, `value`: version of this schema, id and signing key of the installation
    counters      `_id`, `value`: newest ordinal
    audit         `_id`: number of the record; `session`: id of its session; `data`: the canonical JSON; `hash`

Sessions of earlier programs lack `model`, `given_title`, `is_pinned`, `reasoning_tokens`, `waiting_since` and
`origin`. There is no `cost` without a price.
`session_writer.py` explains how a write gets into these collections.
"""

import secrets

import pymongo
from pymongo import IndexModel
from pymongo.errors import OperationFailure

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.mongo.client import MongoDatabase, insert_missing

VERSION = 3
"""Version of the schema. Version 1 was never released; in version 2, sessions with a run had the status `active`."""

_INDEX_NOT_FOUND = 27
"""Error code of MongoDB."""

MESSAGES_INDEX = "messages"
"""Name of the index over those events that are messages, which are few."""

LISTED_INDEX, CLAIMABLE_INDEX = "listed", "claimable"
"""Names of the indexes with which the sessions of an owner are found: all of them, and those with a run."""

_PREPARE_SECONDS = 20.0
"""Maximum seconds for creating the missing collections and indexes."""

# Most indexes are partial, so that a search for work does not scan idle sessions.
_SESSION_INDEXES = [
    IndexModel("ordinal", name="ordinal", unique=True),
    IndexModel([("owner", 1), ("last_activity", -1), ("ordinal", -1)], name=LISTED_INDEX),
    # It holds all fields that a search for work needs, so that the search reads no session.
    IndexModel(
        ["status", "owner", "waiting_since", "ordinal", "lease.holder", "lease.until", "_id"],
        name=CLAIMABLE_INDEX,
        partialFilterExpression={"status": "running"},
    ),
    IndexModel("stop_up_to", name="stopping", partialFilterExpression={"stop_up_to": {"$exists": True}}),
    IndexModel("lease.holder", name="held", partialFilterExpression={"lease.holder": {"$gt": ""}}),
]
_EVENT_INDEXES = [
    IndexModel(["speaker", "_id"], name=MESSAGES_INDEX, partialFilterExpression={"speaker": {"$exists": True}}),
]
_TICKET_INDEXES = [IndexModel(["session", "expires_at"], name="waiting"), IndexModel("expires_at", name="expiring")]

_AUDIT_INDEXES = [IndexModel(["session", "_id"], name="by_session", partialFilterExpression={"session": {"$gt": ""}})]


async def prepare(database: MongoDatabase) -> tuple[str, str]:
    """Check the server, create what is missing, and return the id and the signing key of the installation.

    Processes may do it together.

    Raises:
        StoreUnavailable: The server is no replica set, or the database has another version of the schema.
        Exception: One of `CLIENT_ERRORS`.
    """
    hello = await database.hello()
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise StoreUnavailable(
            "MONGODB_URL: the server is no replica set, which is what keeps writes safe: start it with --replSet NAME"
            " and call rs.initiate() once; one member is enough"
        )
    with pymongo.timeout(_PREPARE_SECONDS):
        version = await _metadata(database, "version", VERSION)
        if version == VERSION - 1:
            version = await _migrate(database)
        if version != VERSION:
            raise StoreUnavailable(
                f"MONGODB_DATABASE: the database has version {version}, this program needs version {VERSION}:"
                " use a newer program, or another database"
            )
        # By default a server waits until every member has built an index: for ever while one member is away.
        await database.sessions.create_indexes(_SESSION_INDEXES, commitQuorum="majority")
        await _drop_index(database, "running")  # The index of earlier programs in place of `claimable`.
        await database.events.create_indexes(_EVENT_INDEXES, commitQuorum="majority")
        await database.tickets.create_indexes(_TICKET_INDEXES, commitQuorum="majority")
        await database.audit.create_indexes(_AUDIT_INDEXES, commitQuorum="majority")
        installation = await _metadata(database, "installation", secrets.token_hex(8))
        return str(installation), str(await _metadata(database, "signing_key", secrets.token_hex(32)))


async def _migrate(database: MongoDatabase) -> int:
    """Bring a database of the previous version to `VERSION`, which is returned. It may be repeated by anybody."""
    await database.sessions.update_many({"status": "active"}, {"$set": {"status": "running"}})
    await _drop_index(database, "active")
    await database.metadata.update_one({"_id": "version"}, {"$set": {"value": VERSION}})
    return VERSION


async def _drop_index(database: MongoDatabase, name: str) -> None:
    try:
        await database.sessions.drop_index(name)
    except OperationFailure as error:
        if error.code != _INDEX_NOT_FOUND:
            raise


async def _metadata(database: MongoDatabase, name: str, default: object) -> object:
    """Return a stored value; store `default` if there is none."""
    found = await database.metadata.find_one({"_id": name})
    if found is None:
        await insert_missing(database.metadata, [{"_id": name, "value": default}])
        found = await database.metadata.find_one({"_id": name})
    return None if found is None else found["value"]

"""Backup and restore of the MongoDB store, with the rights that the service has.

The collections are read at one moment. That matters: rows of a session that are newer than its document would be taken
for rows of the next commit.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import IO
from zipfile import ZipFile

import bson
import pymongo
from bson.raw_bson import DEFAULT_RAW_BSON_OPTIONS, RawBSONDocument
from pymongo.errors import OperationFailure

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.mongo.client import CLIENT_ERRORS, MongoDatabase
from app.infrastructure.persistence.mongo.schema import VERSION

_SUFFIX = ".bson"
_BATCH_BYTES = 8 * 2**20
"""Bytes of documents that are written together."""

_SNAPSHOT_TOO_OLD_CODE = 239
_UNFINISHED = "of an unfinished restore"
"""Version of a database that is being restored: no program starts with it."""


class MongoBackup:
    """Copies a database into an archive, as one file of BSON per collection, and back into an empty database."""

    kind = "mongodb"
    program_schema = VERSION
    """The newest schema that this program can use."""

    def __init__(self, url: str, database: str) -> None:
        """Use the values of MONGODB_URL and MONGODB_DATABASE."""
        self._url = url
        self._name = database

    @property
    def place(self) -> str:
        """The store, for the operator."""
        return f"the MongoDB database {self._name}"

    def save(self, archive: ZipFile) -> tuple[int, str]:
        """Add the database to `archive`. Return the version of its schema and the id of the installation.

        Raises:
            StoreUnavailable: MongoDB cannot be used, or the database is not one of this service.
            OSError: There is no room.
        """
        return asyncio.run(self._save(archive))

    def load(self, archive: ZipFile, installation: str) -> None:
        """Write the database of `archive` into the database, which must be empty.

        Args:
            archive: An archive whose checksums were verified.
            installation: The id to give to it. With its own id, it also keeps the key of its signed addresses.

        Raises:
            StoreUnavailable: MongoDB cannot be used, or the database is not empty.
        """
        asyncio.run(self._load(archive, installation))

    async def _save(self, archive: ZipFile) -> tuple[int, str]:
        async with self._open() as database:
            schema, installation = await _metadata(database, "version"), await _metadata(database, "installation")
            if not isinstance(schema, int):
                raise StoreUnavailable(f"MONGODB_DATABASE: {self._name} is not a database of this service")
            async with database.start_snapshot() as snapshot:
                for name in await database.collection_names():
                    with archive.open(f"{name}{_SUFFIX}", "w", force_zip64=True) as file:
                        async for document in database.raw_collection(name).find(session=snapshot):
                            file.write(document.raw)
            return schema, str(installation or "")

    async def _load(self, archive: ZipFile, installation: str) -> None:
        async with self._open() as database:
            for name in await database.collection_names():
                if await database.raw_collection(name).find_one() is not None:
                    raise StoreUnavailable(
                        f"MONGODB_DATABASE: {self._name} is not empty: restore into another database, or drop it first"
                    )
            await database.metadata.insert_one({"_id": "version", "value": _UNFINISHED})
            values: dict[object, object] = {}
            for member in archive.namelist():
                if not member.endswith(_SUFFIX):
                    continue
                with archive.open(member) as file:
                    if (name := member.removesuffix(_SUFFIX)) == "metadata":
                        values = {row["_id"]: row["value"] for row in bson.decode_file_iter(file)}
                        continue
                    for batch in _batches(file):
                        await database.raw_collection(name).insert_many(batch)
            if installation != values.get("installation"):
                values = values | {"installation": installation, "signing_key": secrets.token_hex(32)}
            version = values.pop("version")
            await database.metadata.insert_many([{"_id": name, "value": value} for name, value in values.items()])
            await database.metadata.update_one({"_id": "version"}, {"$set": {"value": version}})

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[MongoDatabase, None]:
        """Connect. Report the client's errors in one line."""
        database = MongoDatabase(self._url, self._name, "pymongo", on_lost=lambda: None)
        try:
            await database.hello()
            with pymongo.timeout(None):  # reading a collection may take longer than an operation of the service
                yield database
        except CLIENT_ERRORS as error:
            if isinstance(error, OperationFailure) and error.code == _SNAPSHOT_TOO_OLD_CODE:
                raise StoreUnavailable(
                    "MONGODB_URL: reading took longer than the server keeps a snapshot: raise its parameter"
                    " minSnapshotHistoryWindowInSeconds"
                ) from error
            reason = database.explain(error).reason
            raise StoreUnavailable(f"MONGODB_URL: the store cannot be used: {reason}") from error
        finally:
            await database.close()


async def _metadata(database: MongoDatabase, name: str) -> object:
    found = await database.metadata.find_one({"_id": name})
    return None if found is None else found["value"]


def _batches(file: IO[bytes]) -> Iterator[list[RawBSONDocument]]:
    """Yield the documents of a file in batches."""
    batch: list[RawBSONDocument] = []
    size = 0
    for document in bson.decode_file_iter(file, DEFAULT_RAW_BSON_OPTIONS):
        batch.append(document)
        size += len(document.raw)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

"""The part of a collection, alike in both clients, that the store uses."""

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol

Document = dict[str, Any]
"""A document as it is stored; what is in which is told in `schema.py`."""


class UpdateResult(Protocol):
    """What an update did."""

    @property
    def matched_count(self) -> int:
        """Documents that the filter found."""
        ...

    @property
    def upserted_id(self) -> object:
        """The id of the document that was made, None when there was one."""
        ...


class DeleteResult(Protocol):
    """What a deletion did."""

    @property
    def deleted_count(self) -> int:
        """Documents that are gone."""
        ...


class Cursor(Protocol):
    """The documents of a query."""

    def to_list(self, length: int | None) -> Awaitable[list[Document]]:
        """All of them, `length` at most."""
        ...


class Collection(Protocol):
    """Documents under ids; see the clients for what is meant by a filter, a projection and an update."""

    def find_one(
        self, filter: Mapping[str, object], projection: Mapping[str, object] | None = None
    ) -> Awaitable[Document | None]:
        """The first document that fits."""
        ...

    def find(
        self,
        filter: Mapping[str, object],
        projection: Mapping[str, object] | None = None,
        *,
        sort: Sequence[tuple[str, int]] | None = None,
        limit: int = 0,
        hint: str | None = None,
    ) -> Cursor:
        """Every document that fits; with `limit` 0, all of them. `hint`: the index to use."""
        ...

    def count_documents(self, filter: Mapping[str, object], *, hint: str) -> Awaitable[int]:
        """How many fit; `hint`: the index to use."""
        ...

    def insert_one(self, document: Document) -> Awaitable[object]:
        """Store a document."""
        ...

    def insert_many(self, documents: Iterable[Document], *, ordered: bool) -> Awaitable[object]:
        """Store documents; not `ordered`: those after one that fails as well."""
        ...

    def update_one(
        self, filter: Mapping[str, object], update: Mapping[str, object], *, upsert: bool = False
    ) -> Awaitable[UpdateResult]:
        """Change one document."""
        ...

    def update_many(
        self, filter: Mapping[str, object], update: Sequence[Mapping[str, object]]
    ) -> Awaitable[UpdateResult]:
        """Change every document that fits."""
        ...

    def find_one_and_update(
        self,
        filter: Mapping[str, object],
        update: Mapping[str, object] | Sequence[Mapping[str, object]],
        projection: Mapping[str, object] | None = None,
        *,
        upsert: bool = False,
        return_document: bool = False,
    ) -> Awaitable[Document | None]:
        """Change one document and answer it, as it was before, or with `return_document` as it is now."""
        ...

    def find_one_and_delete(self, filter: Mapping[str, object]) -> Awaitable[Document | None]:
        """Remove one document, and answer it."""
        ...

    def delete_one(self, filter: Mapping[str, object]) -> Awaitable[DeleteResult]:
        """Remove one document."""
        ...

    def delete_many(self, filter: Mapping[str, object]) -> Awaitable[DeleteResult]:
        """Remove every document that fits."""
        ...

"""The default store: one SQLite file in `DATA_DIR`, for one process."""

from app.infrastructure.persistence.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]

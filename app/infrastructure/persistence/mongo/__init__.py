"""The store of many processes: a MongoDB replica set."""

from app.infrastructure.persistence.mongo.store import MongoStore

__all__ = ["MongoStore"]

"""The store for many processes: a database of a MongoDB replica set."""

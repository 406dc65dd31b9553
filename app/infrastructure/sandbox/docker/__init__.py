"""Sandboxes as containers of a Docker engine: one a session, its workspace a volume that outlives it."""

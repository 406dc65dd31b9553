"""The stores: SQLite for one process, MongoDB for many, and what both do alike."""

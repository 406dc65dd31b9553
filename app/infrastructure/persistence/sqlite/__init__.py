"""The default store: one SQLite file in `DATA_DIR`, for one process."""

"""Anker: an agent backend that plans a task, works through it with real tools, and streams every event."""

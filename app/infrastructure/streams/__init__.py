"""Feeds: they wake the subscribers of a session when it has new events."""

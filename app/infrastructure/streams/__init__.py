"""Feeds: how whoever follows a session hears that there is something new."""

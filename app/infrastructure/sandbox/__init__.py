"""Sandbox providers: where a session's shells and files live."""

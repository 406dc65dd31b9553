"""Sandboxes as processes on this machine, without isolation."""

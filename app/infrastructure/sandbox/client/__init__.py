"""The HTTP client of the sandbox service."""

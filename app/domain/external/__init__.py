"""Ports to everything outside the service, as protocols in domain types."""

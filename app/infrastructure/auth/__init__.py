"""Adapters of the port `Authenticator`: one file per way to log in."""

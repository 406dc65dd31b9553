"""Masking of the service's own secrets in everything that leaves the process."""

"""Counters for limits: in memory, and shared over Redis."""

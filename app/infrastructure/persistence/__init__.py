"""Stores: where sessions, their events and their memory are kept."""

"""Shells: a pseudo-terminal with a live bash for each shell id."""

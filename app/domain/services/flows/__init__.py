"""The state machines of runs."""

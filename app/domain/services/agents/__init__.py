"""The agents of a run, and what they share."""

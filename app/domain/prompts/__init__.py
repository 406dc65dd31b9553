"""The prompts of the planner and the executor."""

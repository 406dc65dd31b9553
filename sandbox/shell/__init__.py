"""Real shells: a pseudo-terminal and a live bash for each shell id."""

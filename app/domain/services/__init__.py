"""The agent's behavior: tools, agents, and the flow of a run."""

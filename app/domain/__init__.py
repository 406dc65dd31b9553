"""What the agent is, without any framework or vendor."""

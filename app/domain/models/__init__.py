"""What the agent is made of: frozen values without behaviour of their own beyond what they can derive."""

"""Adapters of the `LLM` port: OpenAI-compatible servers, and the scripted demo model."""

"""Tools that the model may call: one module a toolkit."""

"""The feed and the signals over Redis. Importing its modules loads redis-py, so that only the bootstrap does it."""

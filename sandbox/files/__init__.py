"""The workspace's files: plain blocking functions that the routes run in threads."""

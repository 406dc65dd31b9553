"""Files of the workspace: blocking functions that the routes run in threads."""

"""Docker sandboxes: one container per session, with a workspace volume that outlives the container."""

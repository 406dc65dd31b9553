"""Use cases, called by the routes and the run queues."""

"""The run queues: in one process, or in many processes by leases."""

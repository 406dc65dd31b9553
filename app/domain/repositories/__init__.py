"""Storage ports: the event log, sessions, leases, screenshots and tickets."""

"""Bridges from the service's port to local servers: WebSockets to VNC and DevTools."""

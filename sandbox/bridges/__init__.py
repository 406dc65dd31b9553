"""From the one guarded port to what listens inside only: WebSockets to VNC and DevTools."""

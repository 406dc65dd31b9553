"""Browsers in sandboxes, driven over CDP with Playwright."""

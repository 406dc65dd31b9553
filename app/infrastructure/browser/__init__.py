"""The browsers of sandboxes, driven over CDP with Playwright."""

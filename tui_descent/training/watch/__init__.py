"""Watches a training loop: `watch()`, `Watch`, and the hooks around each optimizer step."""

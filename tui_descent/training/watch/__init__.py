"""What a training loop holds to be watched: `Watch`, `watch()`, and the hooks around each step."""

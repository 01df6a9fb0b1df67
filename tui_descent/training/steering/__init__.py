"""Changes a run between two steps: commands, knobs and surgery on the network."""

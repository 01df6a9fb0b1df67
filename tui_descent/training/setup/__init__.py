"""From a scenario to model, data and optimizer."""

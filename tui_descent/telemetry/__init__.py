"""A run's past: bounded histories, JSON lines, the diagnosis. Imports only `protocol` and `scenario`."""

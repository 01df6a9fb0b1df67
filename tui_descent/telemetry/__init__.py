"""What is derived from a run's events: bounded histories, JSON lines, the diagnosis.

Imports only `protocol` and `scenario`.
"""

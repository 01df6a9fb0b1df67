"""Scenarios (what is trained) and the table of knobs. Imports the standard library, msgspec and `protocol` only."""

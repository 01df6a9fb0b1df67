"""What is trained, and which knobs there are. Imports the standard library, msgspec and `protocol` only."""

"""The vocabulary all processes speak: commands in, events out. Standard library and msgspec only."""

"""What the processes exchange: commands in, events out. Imports the standard library and msgspec only."""

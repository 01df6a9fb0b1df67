"""What is to be trained, and what can be turned. Standard library, msgspec and the protocol only."""

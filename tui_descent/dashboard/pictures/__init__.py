"""What the task view draws, one file for each kind of data."""

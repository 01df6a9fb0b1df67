"""Pictures of what is being learnt, one file for each kind of data."""

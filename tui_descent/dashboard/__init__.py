"""The terminal UI, in Textual. It imports neither torch nor training, instruments or keeper."""

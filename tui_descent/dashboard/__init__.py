"""The screen. Textual and plotext; never torch, training, instruments or the keeper."""

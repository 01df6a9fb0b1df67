"""The keeper: one small process per run, without torch.

It owns the socket and the history, starts the trainer and outlives it.
"""

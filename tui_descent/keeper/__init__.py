"""The keeper: one small process per run, without torch. It owns the socket for viewers and the run's history. It starts
the trainer and outlives it.
"""

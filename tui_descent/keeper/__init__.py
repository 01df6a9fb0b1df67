"""One small process a run: owns the socket, the history and the clock; starts and outlives the trainer. No torch."""

"""The knobs of a run, one class each: its value, why it is not available, and what turning it does."""

"""The knobs of a run, a class each: its value, why it cannot act, and how it is turned."""

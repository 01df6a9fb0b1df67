"""The messages between the processes: commands to a run, events from it.

Imports the standard library and msgspec only.
"""

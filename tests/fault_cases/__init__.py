"""The cases of tests/faults.py: what goes wrong around a run, done to it, and what must come of it."""

"""Sweeps: their jobs, their progress and their tables."""

"""A run's folder: how the run begins there, what its results depend on, and how it ended."""

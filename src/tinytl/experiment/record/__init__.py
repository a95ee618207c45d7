"""A run's folder: how it begins, what it is made from, how it ended."""

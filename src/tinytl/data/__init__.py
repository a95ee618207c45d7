"""Data sets, one file per source: each has a function that returns `Splits`."""

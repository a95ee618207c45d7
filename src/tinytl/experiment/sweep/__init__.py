"""The jobs of a sweep, one after the other."""

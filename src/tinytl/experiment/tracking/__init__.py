"""Weights & Biases: a mirror of the results, and dashboards as code."""

"""The record of a run: results.json, and the versions and machine that made it."""

"""Adapt a network in a program of one's own, and keep, load and switch what was trained."""

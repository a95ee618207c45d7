"""Blocks in native code: a Python layer for each, and the C++ that computes it an image at a time."""

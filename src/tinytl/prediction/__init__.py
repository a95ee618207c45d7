"""Predict the classes of images by an adapter or by an exported file."""

"""Training with Lightning: checkpoints, stopping, and what makes resuming exact."""

"""Training with Lightning: the classifier, checkpoints, stopping, and exact resuming."""

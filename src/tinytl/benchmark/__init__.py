"""Memory and step time of training steps: the lean engine beside stock PyTorch."""

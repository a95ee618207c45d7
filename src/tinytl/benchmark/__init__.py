"""Compare the memory and time of training steps under the lean engine and under stock PyTorch."""

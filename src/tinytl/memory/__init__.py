"""Three figures of memory, never mixed: the paper's count, the live tensors, the process."""

"""A warm process image that forks hosts."""

"""Losses of self-training: tensors in, tensors out. Part of the selftrain distribution."""

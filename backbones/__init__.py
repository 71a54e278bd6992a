"""Backbones: posts in, feature rows out. Part of the selftrain distribution."""

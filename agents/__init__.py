"""Who judges a post: roles, judgments, cross-review. Part of the selftrain distribution."""

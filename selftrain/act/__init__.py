"""A small human budget, spent where errors are expected."""

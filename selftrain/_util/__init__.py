"""Small things that any package may use."""

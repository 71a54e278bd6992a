"""Ancillary questions about a post, each asked on its own: prompts, the form of an answer, its reading."""

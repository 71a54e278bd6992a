"""Talking to a model server: one call, its retries, its share of the server."""

"""Annotator and criticizer: a model labels posts, and a model estimates where the labels are wrong."""

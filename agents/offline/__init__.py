"""Agents that need no download: they learn from the labelled posts."""

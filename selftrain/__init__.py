"""Multi-agent verified self-training on text-and-image posts."""

__version__ = "0.1.0"

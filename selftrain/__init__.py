"""Multi-agent verified self-training on text-and-image posts."""

from selftrain.names import check_names

__version__ = "0.1.0"

check_names()

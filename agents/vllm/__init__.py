"""A vLLM server of our own: its command line, its start, and when it can serve."""

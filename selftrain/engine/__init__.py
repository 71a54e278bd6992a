"""Where the work on many posts is done: in this process, or by the workers of a Ray cluster."""

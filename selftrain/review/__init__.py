"""The human budget: who is asked about which post, and what follows from the answers."""

"""A client of OpenAI-compatible servers: what is asked, where it goes, what a failure leads to."""

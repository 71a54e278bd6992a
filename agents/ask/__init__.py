"""One way to ask a model about many posts, and what judges, annotator, criticizer and questioner ask."""

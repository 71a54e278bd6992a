"""Posts from files to a corpus: manifests, tasks, splits, duplicates, features."""

"""Process labels from a model: a task's questions asked about every post of a manifest."""

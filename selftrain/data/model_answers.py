"""Where labels and answers of a post come from: extra fields that are tables.

A grown dataset has

provenance          where the label comes from: a person, or a run that accepted it, and with what posterior

and what `selftrain annotate` writes

process_provenance  question -> the model's answer that stands in `process`, with probability and rationale
process_model       question -> the model's answer where a person had given one already
process_missing     question -> why the model gave no answer
label_model         the class that the model named when asked for it directly
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from selftrain.data.posts import Post
from selftrain.errors import ManifestError

ORIGIN = "provenance"
PROVENANCE, MODEL, MISSING, DIRECT = "process_provenance", "process_model", "process_missing", "label_model"

MACHINES = ("pseudo-label", "machine")
"""Sources of a label that no person gave: a run that accepted it, a labelling that was reviewed in part."""


def by_people(post: Post) -> bool:
    """Return whether a person gave the label; so it is where the post does not say that a machine did."""
    return answer_table(post, ORIGIN).get("source") not in MACHINES


def answer_table(post: Post, name: str) -> Mapping[str, Any]:
    """Return an extra field that is a table, of JSON text in CSV; ManifestError: it is something else."""
    value = post.extra.get(name, {})
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        if name == ORIGIN:  # a common word: where it is not ours it means nothing to us
            return {}
        raise ManifestError(
            f"post {post.id!r}: the field {name!r} holds {post.extra[name]!r:.80}; expected a table of a"
            " model's answers, as `selftrain annotate` writes it: rename or remove it"
        )
    # a Parquet file of somebody else's making names every question in every row
    return {key: entry for key, entry in value.items() if entry is not None}

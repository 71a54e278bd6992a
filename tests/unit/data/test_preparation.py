"""From the manifests that a recipe names to the splits of a run: nothing that it names is left out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from backbones.base import Encoded, FeatureLayout
from selftrain.config import load_recipe
from selftrain.data.preparation import prepare
from selftrain.errors import SplitError

TASK = 'name = "t"\npositive = "rude"\npolicy = "p"\nclasses = { rude = "a", kind = "b" }\n'


class Lengths:
    """A backbone that knows how long a text is."""

    name, layout = "lengths", FeatureLayout(text_width=1, image_width=1)

    def fingerprint(self):
        return "0" * 64

    def encode(self, posts, *, batch_size=64, workers=0, progress=False):
        rows = np.zeros((len(posts), self.layout.width), np.float32)
        rows[:, 0] = [len(post.text) for post in posts]
        return Encoded(rows, ())


@pytest.fixture
def prepared(tmp_path):
    """A function from the keys of [data] to split -> the manifests' names of the posts in it, sorted."""
    (tmp_path / "task.toml").write_text(TASK)

    def write(name, count, labels=("rude", "kind"), **more):
        rows = [
            {"id": f"{name}{n}", "text": f"{name} number {n}", "label": labels[n % len(labels)], **more}
            for n in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def prepare_with(data, **more):
        write("manifest", 20, **more)
        for name in ("validation", "test"):
            write(name, 4)
        write("pool", 6, (None,))
        (tmp_path / "r.toml").write_text(
            f'[data]\nmanifest = "manifest.jsonl"\ntask = "task.toml"\nduplicates = "off"\n{data}\n'
            '[backbone]\ncache = "cache"\n[selection]\nk = 1\n'
        )
        corpus = prepare(load_recipe(tmp_path / "r.toml"), Lengths()).corpus
        names = ("labelled", "validation", "pool", "test")
        ids = {name: [post.id for post in corpus.posts_at(getattr(corpus, name))] for name in names}
        return {name: sorted(one.rstrip("0123456789") for one in found) for name, found in ids.items()}

    return prepare_with


POOL = 'pool = "pool.jsonl"'
OWN = f'validation = "validation.jsonl"\n{POOL}'


def test_with_validation_posts_of_their_own_all_others_are_learned_from(prepared):
    assert prepared(OWN) == {
        "labelled": ["manifest"] * 20, "validation": ["validation"] * 4, "pool": ["pool"] * 6, "test": [],
    }  # fmt: skip


def test_a_share_is_measured_on_beside_validation_posts_of_their_own(prepared):
    found = prepared(f"{OWN}\ntrain_share = 0.8\nvalidation_share = 0\ntest_share = 0.2")
    assert found["labelled"] == ["manifest"] * 16
    assert found["validation"] == ["validation"] * 4
    assert found["test"] == ["manifest"] * 4


def test_manifests_of_splits_count_beside_the_column(prepared):
    found = prepared(f'{OWN}\ntest = "test.jsonl"\nsplit = "column"', split="train")
    assert found == {
        "labelled": ["manifest"] * 20, "validation": ["validation"] * 4, "pool": ["pool"] * 6,
        "test": ["test"] * 4,
    }  # fmt: skip


def test_without_a_validation_share_nothing_validates(prepared):
    found = prepared(f"{POOL}\ntrain_share = 1\nvalidation_share = 0")
    assert found["labelled"] == ["manifest"] * 20
    assert found["validation"] == []


def test_classes_that_no_split_by_shares_would_cut_down_are_not_left_as_they_are(prepared):
    with pytest.raises(SplitError, match=r"data\.balance = true .* leave out one of the two"):
        prepared(f'{OWN}\nsplit = "column"\nbalance = true', split="train")

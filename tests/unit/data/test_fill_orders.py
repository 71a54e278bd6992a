"""The same bytes whatever the cache did: filled in ten orders, with the encoders that are really used."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest

from backbones import load_backbone
from selftrain.data.features import extract_features
from selftrain.data.manifest import read_manifest
from selftrain.data.posts import Post
from selftrain.runs import start


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("minilm_efficientnet", device="cpu")


@pytest.fixture(scope="module")
def posts(small_run):
    """Words of many lengths, pictures, both, albums, and a text that is cut."""
    drawn = read_manifest(small_run.parent / "data" / "manifest.jsonl").posts[:24]
    images = [image for post in drawn for image in post.images]
    words = [Post(f"w{n}", "word, " * n + "Ünï 😀") for n in (0, 1, 2, 3, 5, 8, 13, 40, 90, 300)]
    albums = [Post("a", "An album", tuple(images[:5])), Post("b", "", tuple(images[2:4]))]
    return [*drawn, *words, *albums]


def _killed(posts, backbone, cache):
    """Fill a part, die in the middle of the next one, and come back."""

    class Dying:
        name, layout, fingerprint = backbone.name, backbone.layout, backbone.fingerprint
        parts = 0

        def encode(self, part, **given):
            self.parts += 1
            if self.parts == 2:
                raise KeyboardInterrupt
            return backbone.encode(part, **given)

    with pytest.raises(KeyboardInterrupt):
        extract_features(posts, Dying(), cache, batch_size=1)


def _fill(order, posts, backbone, cache):
    """Fill a cache with `posts`, in one of ten orders."""
    draw = random.Random(order)
    mixed = draw.sample(posts, len(posts))
    cuts = sorted(draw.sample(range(1, len(posts)), 4))
    random_parts = [mixed[a:b] for a, b in zip([0, *cuts], [*cuts, len(posts)], strict=True)]
    parts = {
        "whole": [posts],
        "one by one": [[post] for post in posts],
        "reversed": [posts[::-1]],
        "reversed, one by one": [[post] for post in posts[::-1]],
        "halves": [posts[::2], posts[1::2]],
        "shuffled": [mixed],
        "long ones first": [sorted(posts, key=lambda post: -len(post.text))],
        "random parts": random_parts,
        "random parts, overlapping": [mixed[:20], mixed[10:], posts[::3]],
        "killed": [],
    }[order]
    for number, part in enumerate(parts):
        extract_features(part, backbone, cache, batch_size=1 + number % 3, workers=number % 2)
    if order == "killed":
        _killed(mixed, backbone, cache)


ORDERS = (
    *("one by one", "reversed", "reversed, one by one", "halves", "shuffled", "long ones first"),
    *("random parts", "random parts, overlapping", "killed"),
)


@pytest.fixture(scope="module")
def whole(posts, backbone, tmp_path_factory):
    cache = tmp_path_factory.mktemp("whole")
    _fill("whole", posts, backbone, cache)
    return extract_features(posts, backbone, cache).rows(np.arange(len(posts)))


@pytest.mark.parametrize("order", ORDERS)
def test_a_row_does_not_hang_on_what_it_was_computed_beside(order, posts, backbone, whole, tmp_path):
    assert np.isfinite(whole).all()
    assert len(np.unique(whole, axis=0)) > len(posts) / 2
    _fill(order, posts, backbone, tmp_path)
    rows = extract_features(posts, backbone, tmp_path).rows(np.arange(len(posts)))
    assert rows.tobytes() == whole.tobytes()


def test_a_run_ends_in_the_same_files_whatever_the_cache_held(small_run, backbone, tmp_path):
    home = tmp_path / "again"
    shutil.copytree(small_run.parent / "data", home / "data")
    shutil.copy(small_run.parent / "small.toml", home)
    posts = read_manifest(home / "data" / "manifest.jsonl").posts
    _fill("random parts", posts[::2], backbone, home / "cache")
    assert len(list(start(home / "small.toml", home / "run").rounds())) == 3
    results = {"verdicts.jsonl", "scores.jsonl", "model.safetensors", "selected.jsonl", "grown.jsonl"}
    compared = [file for file in small_run.rglob("*") if file.name in results and file.is_file()]
    assert {file.name for file in compared} >= {"verdicts.jsonl", "scores.jsonl", "model.safetensors"}
    for file in compared:
        again = (home / "run" / file.relative_to(small_run)).read_bytes()
        # the grown dataset names the folder of its pictures
        assert again.replace(bytes(home), bytes(small_run.parent)) == file.read_bytes(), file

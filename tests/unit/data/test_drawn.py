"""The drawn set: the same for the same seed, of every make, and no heap of copies."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from selftrain.data.drawn import DRAWN_TASK, draw_posts
from selftrain.data.duplicates import find_duplicates
from selftrain.data.manifest import read_manifest
from selftrain.data.task import load_task


def _digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    one, two, other = (
        _digests(draw_posts(tmp_path / name, 40, seed).parent)
        for name, seed in zip("abc", (5, 5, 6), strict=True)
    )
    assert one == two
    assert one["manifest.jsonl"] != other["manifest.jsonl"]
    assert sum(one[name] != other.get(name) for name in one) > len(one) / 2


def test_every_make_is_there_and_few_are_copies(tmp_path):
    manifest = draw_posts(tmp_path, 900)
    task = load_task(tmp_path / "task.toml")
    assert task == DRAWN_TASK
    report = read_manifest(manifest, task)
    assert report.problems == ()
    assert report.counts == {"invitation": 450, "advertisement": 450}
    makes = Counter((bool(post.text), len(post.images)) for post in report.posts)
    assert set(makes) == {(True, 0), (False, 1), (True, 1), (True, 2)}
    assert min(makes.values()) >= 30
    assert len({post.text for post in report.posts if post.text}) == 900 - makes[False, 1]
    assert sum(len(group.ids) for group in find_duplicates(report.posts)) <= 9


def test_one_post_is_too_few(tmp_path):
    with pytest.raises(ValueError, match="1 posts; expected at least 2"):
        draw_posts(tmp_path, 1)

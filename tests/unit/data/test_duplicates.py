"""Copies: what is one, what is none, and that none stands in two splits."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from selftrain.data.duplicates import find_duplicates, in_order, separate
from selftrain.data.matching import (
    HASH_DISTANCE,
    Embeddings,
    HashIndex,
    close_pairs,
    hash_images,
    normalise_text,
)
from selftrain.data.posts import Post
from selftrain.data.splits import Splits

NAMES = ("spam", "ham")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Stop!!! that", "stop that"),
        ("RT @somebody: Stop that https://t.co/x1", "stop that"),
        ("STRASSE", "stra\u00dfe"),
        ("\uff33top  that", "stop\u200b that"),
        ("this &amp; that", "this & that"),
        ("caf\u00e9", "cafe\u0301"),
    ],
)
def test_texts_that_are_the_same(one, other):
    assert normalise_text(one) == normalise_text(other) != ""


@pytest.mark.parametrize(
    ("one", "other"), [("\u0915\u093f", "\u0915\u093e"), ("art", "a"), ("part @x", "p"), ("stop 1", "stop 2")]
)
def test_texts_that_are_not(one, other):
    assert normalise_text(one) != normalise_text(other)


@pytest.mark.parametrize("text", ["", " !? ", "@somebody https://t.co/x", "\u200b"])
def test_texts_of_nothing(text):
    assert normalise_text(text) == ""


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=8))
def test_the_banded_look_up_finds_exactly_what_is_near(one, flipped):
    other = one
    for bit in flipped:
        other ^= 1 << bit
    assert (other in HashIndex([other]).near(one)) == (len(flipped) <= HASH_DISTANCE)


def test_the_banded_look_up_equals_the_naive_one():
    chance = random.Random(0)
    hashes = [chance.getrandbits(64) & 0x0303030303030303 for _ in range(300)]
    index = HashIndex(hashes)
    for one in hashes[:50]:
        assert index.near(one) == {o for o in hashes if (one ^ o).bit_count() <= HASH_DISTANCE}


@pytest.fixture
def pictures(tmp_path):
    noise = np.random.RandomState(0).randint(0, 256, (2, 6, 6, 3), np.uint8)
    made = {
        name: Image.fromarray(pixels).resize((96, 96), 3) for name, pixels in zip("ab", noise, strict=True)
    }
    made["white"] = Image.new("RGB", (96, 96), "white")
    made["black"] = Image.new("RGB", (96, 96), "black")
    made["near"] = made["a"].filter(ImageFilter.GaussianBlur(2)).resize((80, 80))
    for name, image in made.items():
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    return lambda *names: tuple(tmp_path / f"{name}.png" for name in names)


def test_groups_of_each_kind(pictures):
    posts = [
        Post("text 1", "Stop that!"),
        Post("text 2", "RT @x: stop that"),
        Post("nothing 1", "!!!", pictures("white")),
        Post("nothing 2", "???", pictures("black")),
        Post("bytes 1", "one", pictures("b")),
        Post("bytes 2", "two", pictures("b")),
        Post("near 1", "three", pictures("a")),
        Post("near 2", "four", pictures("white", "near")),
        Post("near 3", "five", pictures("copy")),
        Post("broken", "six", pictures("broken")),
    ]
    groups = {(group.kind, group.ids) for group in find_duplicates(posts)}
    hashes = hash_images({path for post in posts for path in post.images}, workers=2)
    assert groups == {
        ("text", ("text 1", "text 2")),
        ("image bytes", ("bytes 1", "bytes 2")),
        ("image bytes", ("nothing 1", "near 2")),
        ("image", ("near 1", "near 2", "near 3")),
    }
    assert {(group.kind, group.ids) for group in find_duplicates(posts, hashes)} == groups


def test_close_embeddings_are_found_in_bounded_chunks(monkeypatch):
    monkeypatch.setattr("selftrain.data.matching._CHUNK", 4)
    rows = np.random.RandomState(0).normal(size=(23, 10)).astype(np.float32)
    rows[21] = rows[2] * 3
    rows[:, 8:] = 7  # outside of the text block: must not count
    rows[5, :8] = rows[6, :8] = 0
    rows[7] = rows[8] = np.nan
    asked = []

    def some(positions):
        asked.append(len(positions))
        return rows[list(positions)]

    pairs = close_pairs(Embeddings(some, slice(0, 8)), range(23), range(23))
    assert [pair for pair in pairs if pair[0] < pair[1]] == [(2, 21)]
    assert max(asked) <= 4


def splits_of(test=(), pool=(), labelled=()):
    labels = [Post(f"l{number}", f"labelled number {number}", (), NAMES[number % 2]) for number in range(4)]
    checks = [Post(f"v{number}", f"validation number {number}", (), NAMES[number]) for number in range(2)]
    rest = Post("p", "some other words in the pool")
    truth = {post.id: "spam" for post in pool}
    return Splits(NAMES, (*labels, *labelled), tuple(checks), (rest, *pool), tuple(test), truth)


def test_the_copy_in_the_higher_split_stays(pictures):
    splits = splits_of(
        test=[Post("t", "Stop that", pictures("a"), "spam")],
        labelled=[Post("l", "stop THAT", (), "spam"), Post("m", "words", pictures("b"), "ham")],
        pool=[
            Post("q", "else", pictures("near")),
            Post("r", "r", pictures("b")),
            Post("s", "Validation number 1."),
        ],
    )
    left, dropped = separate(splits)
    assert [tuple(drop) for drop in dropped] == [
        ("l", "labelled", "t", "test", "text"),
        ("q", "pool", "t", "test", "image"),
        ("r", "pool", "m", "labelled", "image bytes"),
        ("s", "pool", "v1", "validation", "text"),
    ]
    assert [post.id for post in left.pool] == ["p"]
    assert left.truth == {}
    assert [post.id for post in left.test] == ["t"]


def test_all_modalities_must_match_where_asked(pictures):
    splits = splits_of(
        test=[
            Post("t", "Stop that", pictures("a"), "spam"),
            Post("album", "many", pictures("a", "b"), "spam"),
        ],
        pool=[
            Post("caption", "stop that", pictures("b")),
            Post("template", "go on", pictures("near")),
            Post("both", "stop that", pictures("near")),
            Post("text only", "STOP that"),
            Post("image only", "", pictures("copy")),
            Post("part", "many", pictures("b")),
            Post("other part", "many", pictures("b", "white")),
        ],
    )
    _, dropped = separate(splits, match="all")
    assert {(drop.post_id, drop.kept_id) for drop in dropped} == {
        ("both", "t"),
        ("text only", "t"),
        ("image only", "t"),
        ("part", "album"),
    }
    _, dropped = separate(splits, match="any")
    assert len(dropped) == 7


def test_nothing_is_dropped_along_a_chain(pictures):
    """b copies the test post's words and c copies b's picture; once b is gone c is alone."""
    splits = splits_of(
        test=[Post("t", "stop that", (), "spam")],
        labelled=[Post("b", "stop that", pictures("a"), "spam")],
        pool=[Post("c", "else", pictures("a"))],
    )
    left, dropped = separate(splits)
    assert [drop.post_id for drop in dropped] == ["b"]
    assert [post.id for post in left.pool] == ["p", "c"]


def test_embeddings_part_the_splits():
    splits = splits_of(test=[Post("t", "a car", (), "spam")], pool=[Post("q", "an automobile")])
    order = [post.id for post in in_order(splits)]
    rows = np.eye(len(order), dtype=np.float32)
    rows[order.index("q")] = rows[order.index("t")]
    embeddings = Embeddings(lambda positions: rows[list(positions)], slice(0, len(order)))
    for match, kind in (("any", "embedding"), ("all", "all")):
        _, dropped = separate(splits, match=match, embeddings=embeddings)
        assert [tuple(drop) for drop in dropped] == [("q", "pool", "t", "test", kind)]


def test_real_memes_straddle_and_are_parted(data_root):
    from selftrain.data.manifest import read_manifest

    memes = read_manifest(data_root / "harmeme" / "val.jsonl").posts
    names = ("harmful", "harmless")
    parts = defaultdict(list)
    for number, post in enumerate(memes):
        parts[number % 3].append(post)
    splits = Splits(names, tuple(parts[0]), tuple(parts[1]), (Post("p", "some words"),), tuple(parts[2]))
    left, dropped = separate(splits)
    texts = [
        {normalise_text(post.text) for post in left[name]} - {""}
        for name in ("test", "validation", "labelled")
    ]
    assert sum(map(len, texts)) == len(set().union(*texts))
    again, none = separate(left)
    assert (again, none) == (left, [])
    assert len(dropped) + sum(len(left[name]) for name in ("test", "validation", "labelled")) == len(memes)


def test_other_ways_to_match_are_refused():
    with pytest.raises(ValueError, match='"any" or "all"'):
        separate(splits_of(), match="some")

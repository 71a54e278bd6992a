"""Posts of a pool that nearly are others: which are found, that none is invented, and what it costs."""

from __future__ import annotations

import csv
import random
import unicodedata

import numpy as np
import pytest
from PIL import Image

from selftrain.data import near_copies as module
from selftrain.data.matching import normalise_text
from selftrain.data.near_copies import NEAR, near_copies
from selftrain.data.posts import Post

SENTENCE = "the garden choir sang all morning and nobody who heard it forgot which song they began with"
WORDS = SENTENCE.split()


def posts_of(*texts):
    return [Post(str(number), text) for number, text in enumerate(texts)]


def pieces_of(text):
    """What a text is compared by, written anew; nothing without words."""
    words = normalise_text(text)
    pieces = {words[start : start + 5] for start in range(max(1, len(words) - 4))}
    return words and pieces | {one for one in text if unicodedata.category(one)[0] == "S"}


def similarity(ours, theirs):
    """The Jaccard similarity of two sets; 0 where their sizes alone put it below what counts."""
    if NEAR * max(len(ours), len(theirs)) > min(len(ours), len(theirs)):
        return 0.0
    return len(ours & theirs) / len(ours | theirs)


def kept_by_comparing_all(texts):
    """The greedy rule, each post against every one that stays."""
    stays, copies = [], set()
    for place, pieces in enumerate(map(pieces_of, texts)):
        if pieces and any(similarity(pieces, one) >= NEAR for one in stays):
            copies.add(place)
        elif pieces:
            stays.append(pieces)
    return copies


@pytest.fixture
def picture(tmp_path):
    def draw(name, seed, **options):
        noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        file = tmp_path / name
        Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC).save(file, **options)
        return file

    return draw


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        (f"Breaking: 126 people say {SENTENCE} http://a.b/c", f"breaking 128 people say {SENTENCE}", True),
        (f"RT @me: {SENTENCE}", f"{SENTENCE}, lol", True),
        ("we beat them at home", "they beat us at home", False),
        ("a short one", "a short two", False),
        ("ab", "ab", True),
        ("ab", "ac", False),
        ("!!! ...", "!!! ...", False),  # nothing is left of them: nobody's copies
        ("so it goes " * 3000, "so it goes " * 3000, True),
        ("so it goes " * 3000, "so it goes " * 2999, False),  # too long to be compared piece by piece
        ("I \U0001f621 you", "I \u2764 you", False),
        ("C rocks", "C++ rocks", False),
        (f"{SENTENCE} \U0001f621", f"{SENTENCE}!", True),
        ("so it goes \udc80 on and on and on", "SO IT GOES on and on and on!", True),
        ("\u0430\u0431\u0432\u0433 " * 9, "\u0430\u0431\u0432\u0433 " * 9 + "\u0434", True),
    ],
)  # fmt: skip
def test_texts(one, other, near):
    assert list(near_copies(posts_of(one, "between", other))) == ([(2, 0)] if near else [])


def test_a_copy_of_a_copy_is_compared_with_what_stays():
    texts = ["garden choir " * 3 + "a" * drift for drift in (1, 8, 15, 22)]
    assert similarity(*map(pieces_of, texts[::3])) < NEAR
    found = dict(near_copies(posts_of(*texts)))
    assert found
    assert not set(found) & set(found.values())


def test_what_is_near_to_a_post_that_stays_is_found_whatever_that_is_near_to():
    ends = ("", " in the evenings", " in the evenings at home")
    first, second, third = (f"{SENTENCE}{end}" for end in ends)
    one, two, three = map(pieces_of, (first, second, third))
    assert min(similarity(one, two), similarity(two, three)) >= NEAR > similarity(one, three)
    assert list(near_copies(posts_of(first, second, third))) == [(1, 0)]
    assert list(near_copies(posts_of(first, second, third), 2)) == [(2, 1)]
    assert list(near_copies(posts_of(first, second, third), 3)) == []


def test_what_is_told_holds_and_next_to_nothing_is_missed():
    chance = random.Random(1)
    texts = []
    for _ in range(400):
        words = chance.choices(WORDS, k=chance.randint(3, 30))
        texts.append(" ".join(words))
        for _ in range(chance.randint(0, 3)):
            other = words.copy()
            other[chance.randrange(len(other))] = chance.choice(WORDS)
            texts.append(" ".join(other))
    chance.shuffle(texts)
    expected, found = kept_by_comparing_all(texts), dict(near_copies(posts_of(*texts)))
    pieces = list(map(pieces_of, texts))
    assert all(similarity(pieces[one], pieces[first]) >= NEAR for one, first in found.items())
    assert len(expected) > 200
    assert len(expected & set(found)) >= 0.97 * len(expected)


def test_real_tweets(data_root):
    with (data_root / "hsol" / "labeled_data.csv").open(encoding="utf-8") as file:
        tweets = [row["tweet"] for row, _ in zip(csv.DictReader(file), range(2500), strict=False)]
    expected = kept_by_comparing_all(tweets)
    found = {one for one, _ in near_copies(posts_of(*tweets))}
    assert len(expected) >= 20
    assert found == expected


def test_pictures_decide_too(picture):
    one, again = picture("one.png", 1), picture("again.jpg", 1, quality=70)
    other, words = picture("other.png", 2), SENTENCE
    posts = [
        Post("a", words, (one,)),
        Post("b", words, (other,)),
        Post("c", f"{words} too", (again,)),
        Post("d", words),
        Post("e", words, (one, other)),
        Post("f", words, (again, other)),
        Post("g", "", (one,)),
        Post("h", "?!", (again,)),
        Post("i", "", (other,)),
    ]
    named = [(posts[one].id, posts[first].id) for one, first in near_copies(posts)]
    assert named == [("c", "a"), ("f", "e"), ("h", "g")]


def test_flat_and_unreadable_pictures(tmp_path):
    flat, copy, broken = (tmp_path / f"{name}.png" for name in ("flat", "copy", "broken"))
    for file in (flat, copy):
        Image.new("RGB", (64, 64), "red").save(file)
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "blue.png")
    broken.write_bytes(b"none")
    files = [flat, tmp_path / "blue.png", copy, broken, broken]
    assert list(near_copies([Post(str(n), "", (file,)) for n, file in enumerate(files)])) == [(2, 0)]


def test_a_crowd_that_is_half_alike_costs_twelve_comparisons_a_post(monkeypatch):
    compared, alike = [], module._alike
    monkeypatch.setattr(module, "_alike", lambda one, other: compared.append(1) or alike(one, other))
    chance = random.Random(0)
    crowd = [" ".join(chance.choices(WORDS, k=40)) + " buy now at our shop" * 6 for _ in range(400)]
    list(near_copies(posts_of(*crowd)))
    assert 400 < len(compared) <= 12 * 400

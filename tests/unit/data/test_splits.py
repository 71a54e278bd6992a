"""Splits: the published protocol, hidden labels, and what is refused with which figures."""

from __future__ import annotations

import csv
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.data.corpus import build_corpus
from selftrain.data.posts import Post
from selftrain.data.splits import Splits, parts_by_column, split_by_shares, split_given
from selftrain.data.task import Task, TaskClass
from selftrain.errors import SplitError

TASK = Task("t", (TaskClass("spam", "unwanted"), TaskClass("ham", "wanted")), "spam", "p")
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def posts_of(spam, ham, unlabelled=0):
    labels = ["spam"] * spam + ["ham"] * ham + [None] * unlabelled
    return [Post(f"{number}", "x", (), label, {"q": "yes"}) for number, label in enumerate(labels)]


def draw_from(posts, *, balance=False, seed=0, **draw):
    """Split by shares, then draw the posts that keep their label: as a run does."""
    splits = split_by_shares(posts, TASK, SHARES, balance=balance, seed=seed)
    return split_given(TASK, splits.labelled, splits.validation, splits.pool, splits.test, seed=seed, **draw)


def labels_of(posts):
    return Counter(post.label for post in posts)


def test_shares_are_stratified_and_the_rest_of_train_is_hidden():
    splits = draw_from(posts_of(200, 100, 7), labelled=30)
    assert labels_of(splits.test) == labels_of(splits.validation) == {"spam": 20, "ham": 10}
    assert labels_of(splits.labelled) == {"spam": 20, "ham": 10}
    assert len(splits.pool) == 217
    assert {post.label for post in splits.pool} == {None}
    assert Counter(splits.truth.values()) == {"spam": 140, "ham": 70}
    hidden = [post for post in splits.pool if post.id in splits.truth]
    assert all(post.process == {} for post in hidden)
    assert all(post.process == {"q": "yes"} for post in splits.pool if post.id not in splits.truth)


@pytest.mark.parametrize(("shares", "tests"), [({"train": 1.0}, 0), ({"train": 0.8, "test": 0.2}, 12)])
def test_no_validation_posts_are_needed(shares, tests):
    splits = split_by_shares(posts_of(30, 30, 1), TASK, shares)
    assert (len(splits.labelled), len(splits.validation), len(splits.test)) == (60 - tests, 0, tests)
    assert not len(build_corpus(splits, TASK, None).validation)


def test_balance_cuts_the_larger_class_and_balanced_draws_evenly():
    splits = draw_from(posts_of(500, 100), labelled=40, balanced=True, balance=True)
    assert labels_of(splits.test) == {"spam": 10, "ham": 10}
    assert labels_of(splits.labelled) == {"spam": 20, "ham": 20}
    assert Counter(splits.truth.values()) == {"spam": 60, "ham": 60}


@settings(deadline=None, max_examples=30)
@given(st.integers(20, 80), st.integers(20, 80), st.integers(0, 9), st.integers(8, 20), st.integers(0, 99))
def test_every_post_lands_once_with_its_own_label(spam, ham, unlabelled, count, seed):
    posts = posts_of(spam, ham, unlabelled)
    splits = draw_from(posts, labelled=count, seed=seed)
    again = draw_from(posts, labelled=count, seed=seed)
    assert splits == again
    known = {post.id: post.label for post in posts}
    met = [post for name in ("labelled", "validation", "pool", "test") for post in splits[name]]
    assert sorted(post.id for post in met) == sorted(known)
    assert len(splits.labelled) == count
    assert all(post.label == known[post.id] for post in met if post.label is not None)
    assert all(known[post_id] == label for post_id, label in splits.truth.items())


def test_another_seed_draws_others():
    draws = [draw_from(posts_of(50, 50), labelled=10, seed=seed) for seed in range(3)]
    assert len({tuple(post.id for post in splits.labelled) for splits in draws}) == 3


def test_the_published_protocol_on_real_tweets(data_root):
    with (data_root / "hsol" / "labeled_data.csv").open(newline="") as file:
        labels = ["ham" if row["class"] == "2" else "spam" for row in csv.DictReader(file)]
    posts = [Post(str(number), "x", (), label) for number, label in enumerate(labels)]
    splits = draw_from(posts, labelled=100, balanced=True, balance=True, seed=3)
    assert (len(splits.test), len(splits.validation), len(splits.labelled), len(splits.pool)) == (
        832,
        832,
        100,
        6562,
    )
    assert labels_of(splits.labelled) == {"spam": 50, "ham": 50}
    offensive = [number for number, label in enumerate(labels) if label == "spam"]
    drawn = np.random.RandomState(3).choice(offensive, 4163, replace=False)
    everything = {post.id for name in ("labelled", "validation", "pool", "test") for post in splits[name]}
    assert everything == {str(number) for number in drawn} | {
        str(number) for number, label in enumerate(labels) if label == "ham"
    }


def test_a_column_names_the_splits():
    names = ["train"] * 10 + ["labelled"] * 2 + ["validation", "Dev"] + ["pool"] * 3 + ["test"] * 2
    posts = [
        Post(str(number), "x", (), "spam" if number % 2 else "ham", {}, {"split": name})
        for number, name in enumerate(names)
    ]
    parts = parts_by_column(posts)
    assert [len(parts[name]) for name in ("labelled", "validation", "pool", "test")] == [12, 2, 3, 2]
    splits = split_given(
        TASK, parts["labelled"], parts["validation"], parts["pool"], parts["test"], labelled=4
    )
    assert [len(splits[name]) for name in ("labelled", "validation", "pool", "test")] == [4, 2, 11, 2]
    assert len(splits.truth) == 11
    with pytest.raises(SplitError, match=r"1 of 20 posts.*'20' with 'held'"):
        parts_by_column([*posts, Post("20", "x", (), "ham", {}, {"split": "held"})])


def test_given_lists_and_an_id_in_two():
    posts = posts_of(10, 10, 2)
    splits = split_given(TASK, [*posts[:6], *posts[14:]], [posts[6], posts[13]], posts[7:13])
    assert labels_of(splits.labelled) == {"spam": 6, "ham": 6}
    assert [post.id for post in splits.pool] == ["20", "21", "7", "8", "9", "10", "11", "12"]
    with pytest.raises(SplitError, match="id '6' stands in validation and in labelled"):
        split_given(TASK, [*posts[:7], *posts[14:]], [posts[6], posts[13]], posts[7:13])


@pytest.mark.parametrize(
    ("posts", "options", "message"),
    [
        (posts_of(30, 0), {}, r"'spam': 24, 'ham': 0.*at least 2"),
        (posts_of(30, 30), {"labelled": 99}, r"99 labelled posts asked for; expected 1 to 48"),
        (posts_of(30, 0), {"balance": True}, r"cannot be cut down .*'spam': 30, 'ham': 0"),
        (posts_of(30, 30), {"labelled": -1}, r"-1 labelled posts"),
        (
            posts_of(30, 30),
            {"labelled": 9, "balanced": True},
            r"9 labelled posts cannot be shared evenly by 2",
        ),
        (posts_of(90, 10), {"labelled": 40, "balanced": True}, r"20 labelled posts of each.*'ham': 8"),
        (posts_of(100, 10), {"labelled": 10}, r"the labelled split has .*'ham': 1"),
        ([*posts_of(30, 30), Post("x", "x", (), "eggs")], {"labelled": 9}, r"post 'x' has the label 'eggs'"),
        ([*posts_of(30, 30, 1), Post("60", "y")], {"labelled": 9}, r"pool holds \d+ posts but \d+ ids"),
    ],
)
def test_too_little_is_said_with_the_figures(posts, options, message):
    with pytest.raises(SplitError, match=message):
        draw_from(posts, **options)


def test_too_few_of_a_class_to_draw_from_and_an_empty_pool():
    posts = posts_of(30, 30)
    with pytest.raises(SplitError, match=r"train has .*'ham': 1.*at least 2"):
        split_given(TASK, posts[:31], posts[31:], labelled=5)
    splits = split_by_shares(posts, TASK, SHARES)
    with pytest.raises(SplitError, match=r"the pool is empty .*48 labelled.*at least 1"):
        build_corpus(splits, TASK, None)


@pytest.mark.parametrize(
    "shares",
    [
        {"validation": 1.0},
        {"train": 0.5, "pool": 0.5},
        {"train": 0.8, "validation": 0.3},
        {"train": 1.2, "validation": -0.2},
    ],
)
def test_shares_that_are_none(shares):
    with pytest.raises(SplitError, match="shares"):
        split_by_shares(posts_of(30, 30), TASK, shares)


def test_a_test_post_without_label_is_refused():
    posts = posts_of(4, 4)
    with pytest.raises(SplitError, match="1 of 1 posts of test have no label"):
        Splits(TASK.names, (*posts[:2], *posts[4:6]), (posts[2], posts[6]), (posts[3],), (Post("z", "x"),))

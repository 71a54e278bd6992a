"""Posts on disk and views of posts are what a tuple of the same posts is, to whoever reads them."""

import datetime
import gc
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from selftrain.data import post_store
from selftrain.data.post_store import Chosen, Joined, PositionOf, PostStore, have_labels, id_keys, unlabelled
from selftrain.data.posts import Post
from selftrain.errors import StorageError

ODD = [
    Post("0"),
    Post("a b", "lone \ud800, a zero \0, \u202e and 😀", (Path("/x/ü \udcff.png"), Path("/y"))),
    Post("c", "t", label="yes", process={"q": "no"}, extra={"n": [1, {"m": None}], "f": 0.1, "i": 2**70}),
    Post("\ud800", "", video=Path("/v.mp4"), extra={"big": float("inf")}),
]
POSTS = [*ODD, *(Post(f"p{n}", f"words {n}", label=("yes", None)[n % 2]) for n in range(3000))]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(post_store, "_IN_MEMORY", 2)
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path / "cache"))


def stored(posts=POSTS):
    store = PostStore()
    for post in posts:
        store.append(post)
    return store


def files(tmp_path):
    return list((tmp_path / "cache" / "selftrain" / "posts").iterdir())


def test_a_store_gives_back_what_was_appended_while_more_is(tmp_path):
    store = PostStore()
    for place, post in enumerate(POSTS):
        store.append(post)
        if place % 500 in (0, 3):
            assert store[place] == post
    assert (len(store), list(store)) == (len(POSTS), POSTS)
    assert (store[-1], list(store[5:9]), list(store[::-1000])) == (POSTS[-1], POSTS[5:9], POSTS[::-1000])
    with pytest.raises(IndexError):
        store[len(POSTS)]
    (file,) = files(tmp_path)
    assert file.stat().st_mode & 0o077 == 0, "nobody else reads it"
    del store
    gc.collect()
    assert not files(tmp_path)


def test_what_json_has_no_form_for_is_the_text_that_a_run_would_write():
    post = Post("d", "t", extra={"day": datetime.date(2020, 2, 3), "in": (1, 2)})
    assert stored([*POSTS[:2], post])[2].extra == {"day": "2020-02-03", "in": [1, 2]}


def test_another_process_of_the_machine_reads_the_same_posts():
    store = stored()
    code = "import pickle, sys; posts = pickle.load(sys.stdin.buffer); print(posts[2000].text, len(posts))"
    sent = pickle.dumps(Chosen(store, range(2500)))
    assert len(sent) < 150_000, "the posts themselves are not sent"
    read = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert read.stdout.decode().split() == ["words", "1996", "2500"]
    assert store[2001] == POSTS[2001]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    code = (
        "import os, signal, sys; from selftrain.data import post_store; post_store._IN_MEMORY = 0\n"
        "from selftrain.data.posts import Post\n"
        "store = post_store.PostStore(); store.append(Post('a')); store[0]\n"
        "print(flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (left,) = files(tmp_path)
        mine = stored()
        assert mine[5]
        assert len(files(tmp_path)) == 2
        assert left in files(tmp_path)
        process.kill()
    assert left in files(tmp_path)
    another = stored()
    assert another[5] == mine[5]
    assert left not in files(tmp_path)
    assert len(files(tmp_path)) == 2


def test_a_forked_child_that_ends_leaves_the_file_and_strange_things_beside_it_are_let_be(tmp_path):
    folder = tmp_path / "cache" / "selftrain" / "posts"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "selftrain-fifo")
    (folder / "mine.txt").write_text("mine")
    store = stored()
    assert store[5] == POSTS[5]
    (file,) = set(files(tmp_path)) - {folder / "selftrain-fifo", folder / "mine.txt"}
    if (child := os.fork()) == 0:
        post_store._remove(str(file), os.getppid())
        os._exit(0)
    os.waitpid(child, 0)
    assert pickle.loads(pickle.dumps(store))[5] == POSTS[5]


def test_a_full_disk_is_told(monkeypatch):
    store = stored(POSTS[:3])
    assert store[2] == POSTS[2]

    class Full:
        name = "/full"

        def write(self, data):
            raise OSError(28, os.strerror(28))

    store._file = Full()
    store.append(POSTS[3])
    with pytest.raises(StorageError, match=r"the disk is full.*SELFTRAIN_CACHE names another"):
        store[3]


def test_a_post_more_costs_some_bytes_and_not_its_text():
    long = "x" * 2000
    tracemalloc.start()
    try:
        store = stored(Post(f"id {n}", long) for n in range(5_000))
        before = tracemalloc.get_traced_memory()[0]
        for n in range(5_000, 25_000):
            store.append(Post(f"id {n}", long))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown / 20_000 < 150
    assert store[24_000].text == long


# ---- views ----


@pytest.mark.parametrize("kept", [list, stored])
def test_views_are_read_as_the_posts_themselves(kept):
    posts = kept(POSTS)
    some = Chosen(posts, [7, 3, 3, 2000])
    assert list(some) == [POSTS[7], POSTS[3], POSTS[3], POSTS[2000]]
    assert some == [POSTS[7], POSTS[3], POSTS[3], POSTS[2000]]
    assert (some == [POSTS[7]], some == 5) == (False, False)
    assert list(Chosen(some, [3, 0])) == [POSTS[2000], POSTS[7]]
    assert Chosen(some, [3, 0]).posts is posts
    both = Joined(some, (), Joined(ODD, Chosen(posts, [10])))
    assert list(both) == [*some, *ODD, POSTS[10]] == [both[n] for n in range(9)]
    assert (both[-1], list(both[3:6]), len(both.parts)) == (POSTS[10], [POSTS[2000], *ODD[:2]], 3)
    with pytest.raises(IndexError):
        both[9]
    assert (list(Joined()), len(Joined((), []))) == ([], 0)


@pytest.mark.parametrize("kept", [list, stored])
def test_of_unlabelled_posts_nobody_sees_label_or_answers(kept):
    posts = kept(POSTS)
    for hidden in (unlabelled(posts), unlabelled(Joined(Chosen(posts, range(len(POSTS)))))):
        again = Chosen(Joined(hidden), range(len(POSTS)))
        assert not [post for post in again if post.label is not None]
        assert (again[2].process, again[2].text) == ({}, "t")
    asked = Post("u", "t", process={"q": "no"})
    assert unlabelled([asked])[0] == asked, "answers that tell no label stay"


@pytest.mark.parametrize("kept", [list, stored])
def test_a_post_is_found_by_its_id_alone(kept):
    posts = kept(POSTS)
    view = Joined(Chosen(posts, range(1000, 3000)), ODD)
    position_of = PositionOf(view)
    assert [position_of[post.id] for post in view] == [*range(len(view))]
    assert ("p1" in position_of, position_of.get("p2000"), len(position_of)) == (False, 1004, len(view))
    assert list(position_of)[:2] == ["p996", "p997"]
    wanted = Chosen(view, [5, 2001, 0])
    assert position_of.all(wanted).tolist() == [5, 2001, 0]
    with pytest.raises(KeyError, match="p1"):
        position_of.all([Post("p996"), Post("p1")])
    with pytest.raises(KeyError):
        PositionOf(()).all([Post("a")])
    assert PositionOf(()).all(()).tolist() == []


def test_ids_that_share_a_key_are_told_apart(monkeypatch):
    monkeypatch.setattr(post_store, "id_key", len)
    posts = stored([Post(one) for one in ("a", "bb", "c", "d", "ee", "c")])
    position_of = PositionOf(posts)
    assert [position_of[one] for one in ("a", "bb", "c", "d", "ee")] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError):
        position_of["x"]
    assert position_of.all([Post("d"), Post("ee")]).tolist() == [3, 4]
    assert [*position_of.twice()] == [(2, 5)]


def test_keys_are_those_of_the_ids_whatever_the_view():
    store = stored()
    plain = id_keys(POSTS)
    assert (plain == id_keys(store)).all()
    assert len(np.unique(plain)) == len(POSTS)
    assert (id_keys(Chosen(store, [9, 4])) == plain[[9, 4]]).all()
    assert (id_keys(Joined(store, Chosen(POSTS, [1]))) == [*plain, plain[1]]).all()
    assert json.dumps(int(plain[0])), "a number of 64 bits"


@pytest.mark.parametrize("kept", [list, stored])
def test_it_is_known_which_posts_show_a_label(kept):
    posts = kept(POSTS)
    shown = [post.label is not None for post in POSTS]
    assert have_labels(posts).tolist() == shown
    assert have_labels(Joined(Chosen(posts, [2, 3]), posts)).tolist() == [True, False, *shown]
    assert not have_labels(Joined(unlabelled(posts))).any()
    assert have_labels(()).tolist() == have_labels(Joined()).tolist() == []

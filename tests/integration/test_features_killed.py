"""The feature cache under SIGKILL, and with two processes that fill it at once."""

import os
import signal
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from processes import Process

from backbones.base import Encoded, FeatureLayout
from selftrain.data.feature_store import FORMAT
from selftrain.data.features import extract_features

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).parents[2]
POSTS = 400
CHILD = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
import test_features_killed as room
root, step, kill_after = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
backbone = room.SlowBackbone(kill_after)
posts = room.some_posts()[::step]
table = room.extract_features(posts, backbone, root, batch_size=1)
assert (table.rows(range(len(posts))) == room.expected(posts)).all()
print(backbone.calls)
"""


class SomePost:
    def __init__(self, number):
        self.id, self.text, self.images = f"id{number}", f"text {number}", ()


def some_posts():
    return [SomePost(i) for i in range(POSTS)]


def expected(posts):
    digests = [sha256(post.text.encode()).digest()[:8] for post in posts]
    return np.stack([np.frombuffer(digest, dtype=np.uint8).astype(np.float32) for digest in digests])


class SlowBackbone:
    name = "slow"
    layout = FeatureLayout(4, 2)

    def __init__(self, kill_after=-1):
        self.calls = 0
        self.kill_after = kill_after

    def fingerprint(self):
        return "a" * 64

    def encode(self, posts, *, batch_size=64, workers=0, progress=False):
        if self.calls == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        time.sleep(0.02)
        return Encoded(expected(posts), ())


def start(root, step=1, kill_after=-1):
    arguments = [str(Path(__file__).parent), str(root), str(step), str(kill_after)]
    return Process(("-c", CHILD, *arguments), cwd=CHECKOUT)


def test_a_killed_extraction_goes_on_where_it_was(tmp_path):
    child = start(tmp_path, kill_after=5)
    child.communicate(timeout=120)
    assert child.returncode == -signal.SIGKILL
    again = start(tmp_path)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert int(out) == 13 - 5  # 400 posts, 32 a write


def test_killed_at_any_moment_the_cache_stays_readable(tmp_path):
    """Killed from outside at arbitrary moments, writes included, until one run comes through."""
    backbone = SlowBackbone()
    for delay in (0.0, 0.013, 0.031, 0.047, 0.061):
        child = start(tmp_path)
        keys = tmp_path / f"{'a' * 16}-{FORMAT}" / "keys.bin"
        size, deadline = keys.stat().st_size if keys.exists() else 0, time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            if keys.exists() and keys.stat().st_size > size:
                break
            time.sleep(0.001)
        time.sleep(delay)
        child.kill()
        child.communicate()
    table = extract_features(some_posts(), backbone, tmp_path, batch_size=1)
    assert backbone.calls < 13  # something was kept
    np.testing.assert_array_equal(table.rows(np.arange(POSTS)), expected(some_posts()))


def test_two_processes_fill_one_cache(tmp_path):
    children = [start(tmp_path), start(tmp_path, step=2)]
    for child in children:
        _, err = child.communicate(timeout=120)
        assert child.returncode == 0, err
    folder = tmp_path / f"{'a' * 16}-{FORMAT}"
    data = (folder / "keys.bin").read_bytes()
    keys = {data[i : i + 32] for i in range(0, len(data), 36)}
    assert len(keys) == len(data) // 36 == POSTS
    reader = SlowBackbone()
    table = extract_features(some_posts(), reader, tmp_path)
    assert reader.calls == 0
    np.testing.assert_array_equal(table.rows(np.arange(POSTS)), expected(some_posts()))

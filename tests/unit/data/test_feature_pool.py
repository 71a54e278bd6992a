"""Features that others compute: the same rows in the same cache."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from ray_helpers import across_processes
from test_features import FakeBackbone, SomePost, expected, folder_of, some_posts

from selftrain.data.feature_store import FeatureStore
from selftrain.data.features import EncoderPool, extract_features
from selftrain.errors import EngineError


class OtherEngine:
    """As `OnRay`, without a cluster."""

    map = across_processes


def test_a_pool_gives_the_same_rows_and_refusals_and_is_sent_what_is_read_alone(tmp_path):
    posts = [*some_posts(700), SomePost("x", "bad"), SomePost("y", "inf"), SomePost("z", "text 3")]
    here, there = FakeBackbone(), FakeBackbone()
    extract_features(posts, here, tmp_path / "here", batch_size=3)
    table = extract_features(
        posts, there, tmp_path / "there", batch_size=3, pool=EncoderPool(OtherEngine(), FakeBackbone)
    )
    assert (there.encoded, table.failed.keys()) == ([], {"x", "y"})
    done = table.computed
    assert (done.stage, done.posts, done.where) == ("features", 702, "in process")
    again = extract_features(posts[:700], there, tmp_path / "there", batch_size=3)
    assert again.computed is None, "nothing was missing"
    np.testing.assert_array_equal(table.rows([702, 0]), expected([posts[702], posts[0]]))
    for file in ("rows.f32", "keys.bin"):
        stored = [(folder_of(tmp_path / name) / file).read_bytes() for name in ("here", "there")]
        assert stored[0] == stored[1]


def test_a_pool_of_another_backbone_is_refused_and_what_was_stored_stays(tmp_path):
    extract_features(some_posts(5), FakeBackbone(), tmp_path)
    pool = EncoderPool(OtherEngine(), partial(FakeBackbone, "two"))
    with pytest.raises(EngineError, match=r"a worker has the backbone \w{12}, this process \w{12}: its"):
        extract_features(some_posts(9), FakeBackbone(), tmp_path, pool=pool)
    store = FeatureStore(folder_of(tmp_path), FakeBackbone().fingerprint(), FakeBackbone.layout)
    assert len(store.index()) == 5


class DyingEngine:
    """An engine whose workers some posts end."""

    @contextmanager
    def map(self, source, stage, rescue=None):
        work = stage()

        def one(block):
            deadly = [post for post in block if "deadly" in post.text]
            if not deadly:
                return work(block)
            if len(block) == 1:
                return rescue.lost(block, "it ends whoever gets it")
            return rescue.join([one(item) for item in rescue.split(block)])

        yield map(one, source())


def test_posts_that_end_whoever_encodes_them_have_no_row_and_all_others_have(tmp_path):
    posts = some_posts(9)
    posts[4] = replace(posts[4], text="deadly")
    posts[8] = replace(posts[8], text="deadly too")
    again = replace(posts[4], id="again")
    pool = EncoderPool(DyingEngine(), FakeBackbone)
    table = extract_features([*posts, again], FakeBackbone(), tmp_path, batch_size=1, pool=pool)
    reason = "it ends whoever gets it"
    assert table.failed == {posts[4].id: reason, posts[8].id: reason, "again": reason}
    rows = table.rows(range(10))
    assert np.isnan(rows[[4, 8, 9]]).all()
    np.testing.assert_array_equal(rows[[3, 5]], expected([posts[3], posts[5]]))

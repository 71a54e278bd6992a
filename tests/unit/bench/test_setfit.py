"""SetFit as a peer: it learns from the texts, and says what to install where it is missing."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from loop_helpers import corpus_of

from runs.bench import __main__ as bench
from runs.bench.baselines import BASELINES, ON_REQUEST, load_setfit
from selftrain.errors import DataError

WORDS = {"ham": "a quiet walk by the lake number {}", "spam": "win money now, claim your prize {}"}


def test_a_study_says_what_to_install_before_it_prepares_anything(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "setfit", None)
    with pytest.raises(DataError, match=r"pip install --no-deps setfit=="):
        load_setfit()
    # the folder holds no data either, which would be said later
    assert bench.main(["hsol", "--data", str(tmp_path), "--peers", "setfit"]) == 2
    assert "pip install --no-deps setfit==" in capsys.readouterr().err


def test_it_is_measured_only_where_it_is_named():
    assert "setfit" in ON_REQUEST
    assert not BASELINES.keys() & ON_REQUEST.keys()


def test_it_learns_from_texts_alone_and_the_same_twice():
    pytest.importorskip("setfit", reason="needs SetFit: pip install --no-deps setfit datasets and others")
    corpus = corpus_of((8, 4, 4, 12), ("ham", "spam"))
    texts = [
        replace(post, text=WORDS[("ham", "spam")[truth]].format(post.id))
        for post, truth in zip(corpus.posts, corpus.truth, strict=True)
    ]
    corpus = replace(corpus, posts=texts, table=None)
    first, again = (ON_REQUEST["setfit"](corpus, 3) for _ in range(2))
    assert first["macro_f1"] == 1
    assert first["auc"] == 1
    assert {name: first[name] for name in ("macro_f1", "auc")} == {
        name: again[name] for name in ("macro_f1", "auc")
    }
    assert np.isfinite(first["seconds"])

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from agents.offline.text_model import MAX_CHARACTERS, CharacterNgrams, WordNgrams, normalise, rows


@given(st.lists(st.text(max_size=40), min_size=1, max_size=8))
def test_character_ngrams_are_those_of_scikit_learn(texts):
    texts = [normalise(text) for text in texts]
    ours = CharacterNgrams()
    ours.fit(texts, min_count=1)
    try:
        theirs = CountVectorizer(analyzer="char_wb", ngram_range=(3, 5), binary=True, lowercase=False)
        expected = theirs.fit_transform(texts)
    except ValueError:  # scikit-learn refuses an empty vocabulary
        assert ours.width == 0
        return
    found = rows(ours.find(texts), len(texts), ours.width)
    assert ours.width == expected.shape[1]
    assert found.getnnz(axis=1).tolist() == expected.getnnz(axis=1).tolist()
    assert ((found @ found.T) != (expected @ expected.T)).nnz == 0


@pytest.mark.parametrize("kind", [WordNgrams, CharacterNgrams])
@given(texts=st.lists(st.text(max_size=40), max_size=6))
def test_occurrences_point_at_words_of_their_own_text(kind, texts):
    texts = [normalise(text) for text in texts]
    ngrams = kind()
    ngrams.fit(texts, min_count=1)
    found = ngrams.find(texts)
    assert np.array_equal(found.word_text[found.word], found.text)
    assert len(found.words) == len(found.word_text)
    assert all(word in texts[owner] for word, owner in zip(found.words, found.word_text, strict=True))


@pytest.mark.parametrize("kind", [WordNgrams, CharacterNgrams])
def test_rare_ngrams_stay_out_of_the_vocabulary(kind):
    ngrams = kind()
    ngrams.fit(["rose rose rose", "iron", "iron"], min_count=2)
    found = ngrams.find(["rose", "iron", "unseen"])
    assert set(found.text.tolist()) == {1}


def test_normalise():
    assert normalise("RT @you: Looooook &amp;amp; see https://t.co/x #Roses") == ": look & see roses"
    assert normalise("a\0b\u202ec\ud800d") == "a b c d"
    assert len(normalise("ab" * 10**6)) == MAX_CHARACTERS


def test_importing_agents_is_light():
    code = (
        "import sys, agents, agents.judgment, agents.errors, agents.replayed, agents.panel;"
        "sys.exit(any(m in sys.modules for m in ('numpy', 'sklearn', 'torch', 'selftrain')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_can_be_had():
    import agents

    assert all(getattr(agents, name).__name__ == name for name in agents.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = agents.nothing

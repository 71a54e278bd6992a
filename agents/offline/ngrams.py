"""Texts to binary n-gram rows, two ways: words with their stems, and characters within words.

Shape legend: ``B`` texts, ``F`` features (the vocabulary), ``M`` occurrences in all texts together.

An occurrence knows the word in which it stands, so that what a linear model says of n-grams can be told to
a person in words.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

Sparse: TypeAlias = Any
"""A scipy CSR matrix; scipy ships no types."""

MAX_CHARACTERS = 20_000
"""A longer text is cut here: a post's topic shows early, and one giant post must not cost a round."""

_NOISE = re.compile(r"https?://\S+|www\.\S+|@\w+|\brt\b|#")
_REPEATED = re.compile(r"(.)\1{2,}", re.DOTALL)
# one token: a character of a script written without spaces, a word with its apostrophes, or a sign
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:'\w+)*|[^\w\s]")
_STEM = 4
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd and well mixed: 2^64 divided by the golden ratio


def normalise(text: str) -> str:
    """Lower case, entities resolved, links, mentions, "rt" and control characters out, runs cut to two."""
    text = html.unescape(html.unescape(text[:MAX_CHARACTERS])).lower().replace("\u2019", "'")
    text = _REPEATED.sub(r"\1\1", _NOISE.sub(" ", text))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class Occurrences(NamedTuple):
    """Where the n-grams of some texts stand; one entry of `text`, `feature`, `word` an occurrence.

    Attributes:
        text: [M] position of the text.
        feature: [M] column in the vocabulary.
        word: [M] position in `words` of the word that holds it.
        words: The words of all texts, in order.
        word_text: Position of the text of each word.
    """

    text: npt.NDArray[np.int64]
    feature: npt.NDArray[np.int64]
    word: npt.NDArray[np.int64]
    words: list[str]
    word_text: npt.NDArray[np.int64]


class Ngrams(Protocol):
    """A vocabulary that is fitted once on all texts of a run."""

    name: str
    width: int

    def fit(self, texts: Sequence[str], *, min_count: int) -> None:
        """Take as vocabulary the n-grams that stand in at least `min_count` of the normalised `texts`."""
        ...

    def find(self, texts: Sequence[str]) -> Occurrences:
        """Occurrences of the vocabulary in normalised `texts`."""
        ...


def rows(found: Occurrences, count: int, width: int) -> Sparse:
    """Binary CSR matrix [B = count, F = width] of what was found: 1 where the n-gram occurs."""
    matrix = sp.csr_matrix(
        (np.ones(len(found.text), np.float32), (found.text, found.feature)), shape=(count, width)
    )
    matrix.data[:] = 1.0
    return matrix


class WordNgrams:
    """Words, and the first four letters of the longer ones: with 100 labels most words are seen once."""

    name = "words"

    def __init__(self) -> None:
        self._column: dict[str, int] = {}
        self.width = 0

    def fit(self, texts: Sequence[str], *, min_count: int) -> None:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update({term for word in _TOKEN.findall(text) for term in self._terms(word)})
        kept = sorted(term for term, count in counts.items() if count >= min_count)
        self._column = {term: column for column, term in enumerate(kept)}
        self.width = len(kept)

    def find(self, texts: Sequence[str]) -> Occurrences:
        entries: list[tuple[int, int, int]] = []
        words: list[str] = []
        owners: list[int] = []
        for position, text in enumerate(texts):
            for word in _TOKEN.findall(text):
                for term in self._terms(word):
                    column = self._column.get(term)
                    if column is not None:
                        entries.append((position, column, len(words)))
                words.append(word)
                owners.append(position)
        table = np.array(entries, np.int64).reshape(-1, 3)
        return Occurrences(table[:, 0], table[:, 1], table[:, 2], words, np.array(owners, np.int64))

    @staticmethod
    def _terms(word: str) -> tuple[str, ...]:
        # no token holds a tilde beside letters, so a stem never meets a word
        return (word, word[:_STEM] + "~") if len(word) > _STEM else (word,)


class CharacterNgrams:
    """Runs of 3 to 5 characters that do not cross a word's edge, as 64-bit hashes.

    Hashing whole arrays of code points is some ten times faster than cutting strings one by one; among
    10^5 n-grams two share a hash with probability below 10^-9.
    """

    name = "characters"
    sizes = (3, 4, 5)

    def __init__(self) -> None:
        self._hashes = np.empty(0, np.uint64)
        self.width = 0

    def fit(self, texts: Sequence[str], *, min_count: int) -> None:
        if not texts:
            self._hashes, self.width = np.empty(0, np.uint64), 0
            return
        hashes, text, _, _ = self._windows(texts)
        known, column = np.unique(hashes, return_inverse=True)
        pairs = np.unique(column.astype(np.int64) * len(texts) + text)  # one entry a text and n-gram
        counts = np.bincount(pairs // len(texts), minlength=len(known))
        self._hashes = known[counts >= min_count]
        self.width = len(self._hashes)

    def find(self, texts: Sequence[str]) -> Occurrences:
        if not texts or not self.width:
            empty = np.empty(0, np.int64)
            return Occurrences(empty, empty, empty, [], empty)
        hashes, text, word, word_text = self._windows(texts)
        column = np.minimum(np.searchsorted(self._hashes, hashes), self.width - 1)
        known = self._hashes[column] == hashes
        words = [part for one in texts for part in one.split(" ") if part]
        return Occurrences(text[known], column[known].astype(np.int64), word[known], words, word_text)

    def _windows(self, texts: Sequence[str]) -> tuple[npt.NDArray[Any], ...]:
        """Hashes [M], their texts [M], their words [M], and the text of each word."""
        joined = "".join(f"\0 {text} " for text in texts) + "\0"
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        edge, space = codes == 0, codes == ord(" ")
        owner = np.cumsum(edge) - 1
        begins = ~(space | edge)
        begins[1:] &= (space | edge)[:-1]
        word_at = np.cumsum(begins) - 1
        hashes, places = [], []
        for size in self.sizes:
            count = len(codes) - size + 1
            if count <= 0:
                continue
            value = np.full(count, size, np.uint64)
            usable = ~(edge[:count] | edge[size - 1 :])
            for offset in range(size):
                value = value * np.uint64(0x9E3779B97F4A7C15) + (
                    codes[offset : offset + count] + np.uint64(1)
                )
                if 0 < offset < size - 1:  # a space may stand only first or last
                    usable &= _inside_word(space, edge, offset, count)
            place = np.flatnonzero(usable)
            hashes.append(value[place])
            places.append(place)
        place = np.concatenate(places) if places else np.empty(0, np.int64)
        value = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
        # the second character lies inside the word, wherever the first one stands
        return value, owner[place], word_at[place + 1], owner[begins]


def _inside_word(
    space: npt.NDArray[np.bool_], edge: npt.NDArray[np.bool_], offset: int, count: int
) -> npt.NDArray[np.bool_]:
    """True where the character at `offset` of a window lies within a word."""
    return ~(space[offset : offset + count] | edge[offset : offset + count])

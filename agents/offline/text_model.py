"""What an offline agent reads: texts as binary n-gram rows, and a linear model on them.

Shape legend: ``B`` texts, ``F`` features (the vocabulary), ``K`` classes, ``M`` occurrences in all texts
together, ``U`` unlabelled posts.

N-grams come in two kinds: words with their stems, and characters within words. An occurrence knows the word
in which it stands, so that what a linear model finds in n-grams can be told to a person in words.

The model is NB-SVM on the labels, steadied by naive Bayes EM on the pool. Measured on HSOL with 100 labels,
macro-F1 on the pool: character n-grams .87 with TF-IDF and logistic regression, .90 with NB-SVM (Wang &
Manning 2012), .89 with EM (Nigam et al. 2000), .91 with the sum of the last two, which err in different
places.
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

Floats: TypeAlias = npt.NDArray[np.float64]

MAX_CHARACTERS = 20_000
"""A longer text is cut here: a post's topic shows early, and one giant post must not cost a round."""

# measured with 100 labels
SMOOTHING_RATIO = 0.3
SMOOTHING_EM = 0.1
EM_ITERATIONS = 3
EM_SHARE = 0.5  # of the EM part in the sum, where NB-SVM counts 1
REGULARISATION = 10.0

_NOISE = re.compile(r"https?://\S+|www\.\S+|@\w+|\brt\b|#")
_REPEATED = re.compile(r"(.)\1{2,}", re.DOTALL)
# one token: a character of a script written without spaces, a word with its apostrophes, or a sign
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:'\w+)*|[^\w\s]")
_STEM = 4
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd and well mixed: 2^64 divided by the golden ratio


def normalise(text: str) -> str:
    """Return `text` in lower case, without links, mentions and control characters, runs cut to two."""
    text = html.unescape(html.unescape(text[:MAX_CHARACTERS])).lower().replace("\u2019", "'")
    text = _REPEATED.sub(r"\1\1", _NOISE.sub(" ", text))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class Occurrences(NamedTuple):
    """Where the n-grams of some texts stand; one entry of `text`, `feature`, `word` an occurrence."""

    text: npt.NDArray[np.int64]  # [M] position of the text
    feature: npt.NDArray[np.int64]  # [M] column in the vocabulary
    word: npt.NDArray[np.int64]  # [M] position in `words` of the word that holds it
    words: list[str]  # the words of all texts, in order
    word_text: npt.NDArray[np.int64]  # position of the text of each word


class Ngrams(Protocol):
    """A vocabulary that is fitted once on all texts of a run."""

    name: str
    width: int

    def fit(self, texts: Sequence[str], *, min_count: int) -> None:
        """Take as vocabulary the n-grams that stand in at least `min_count` of the normalised `texts`."""
        ...

    def find(self, texts: Sequence[str]) -> Occurrences:
        """Return the occurrences of the vocabulary in normalised `texts`."""
        ...


def rows(found: Occurrences, count: int, width: int) -> Sparse:
    """Return a binary CSR matrix [B = count, F = width] of what was found: 1 where the n-gram occurs."""
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
        """Return hashes [M], their texts [M], their words [M], and the text of each word."""
        joined = "".join(f"\0 {text} " for text in texts) + "\0"
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        edge = codes == 0
        outside = edge | (codes == ord(" "))  # of any word
        owner = np.cumsum(edge) - 1
        begins = ~outside
        begins[1:] &= outside[:-1]
        word_at = np.cumsum(begins) - 1
        hashes, places = [], []
        for size in self.sizes:
            count = len(codes) - size + 1  # 0 at least: of an empty text four characters stand there
            value = np.full(count, size, np.uint64)
            usable = ~(edge[:count] | edge[size - 1 :])
            for offset in range(size):
                value = value * _MULTIPLIER + (codes[offset : offset + count] + np.uint64(1))
                if 0 < offset < size - 1:  # a space may stand only first or last
                    usable &= ~outside[offset : offset + count]
            place = np.flatnonzero(usable)
            hashes.append(value[place])
            places.append(place)
        place = np.concatenate(places)
        # the second character lies inside the word, wherever the first one stands
        return np.concatenate(hashes), owner[place], word_at[place + 1], owner[begins]


# ---- the linear model -----------------------------------------------------------------------------------


def fit_weights(
    labelled: Sparse, targets: Floats, unlabelled: Sparse, *, temper: float
) -> tuple[Floats, Floats]:
    """Return weights [F, K] and biases [K] of class scores; a row of scores sums to zero.

    Args:
        labelled: Binary rows [B, F].
        targets: [B, K] weight of each class for each post; a row's sum is the post's weight.
        unlabelled: Binary rows [U, F] of the pool; may be empty.
        temper: Scales the log-likelihoods of EM: n-grams that overlap count the same evidence many times.
    """
    weights, bias = _nb_svm(labelled, targets)
    reference = unlabelled if unlabelled.shape[0] else labelled
    scale = _spread(reference @ weights + bias)
    weights, bias = weights / scale, bias / scale
    if unlabelled.shape[0]:
        em = _naive_bayes_em(labelled, targets, unlabelled, temper)
        em *= EM_SHARE / _spread(unlabelled @ em)
        weights = weights + em
    return weights, bias


def _spread(scores: Floats) -> float:
    """Return the mean distance of a post's best class score from the mean of its scores; never zero."""
    return float(max((scores.max(axis=1) - scores.mean(axis=1)).mean(), 1e-9))


def _nb_svm(rows: Sparse, targets: Floats) -> tuple[Floats, Floats]:
    """Fit one against the rest: logistic regression on features scaled by their naive Bayes log-ratio."""
    used = np.flatnonzero(np.asarray(rows.sum(axis=0)).ravel())  # other columns cannot get a weight
    compact, width, classes = rows[:, used], rows.shape[1], targets.shape[1]
    total = targets.sum(axis=1)
    weights, bias = np.zeros((width, classes)), np.zeros(classes)
    if not len(used):  # pictures alone, or words that no other text has: nothing is known
        return weights, bias
    for k in range(1, 2) if classes == 2 else range(classes):
        ratio = _log_ratio(compact, targets[:, k], total - targets[:, k], width)
        coefficients, intercept = _logistic(compact.multiply(ratio).tocsr(), targets[:, k], total)
        weights[used, k], bias[k] = ratio * coefficients, intercept
    return weights - weights.mean(axis=1, keepdims=True), bias - bias.mean()


def _log_ratio(rows: Sparse, positive: Floats, negative: Floats, width: int) -> Floats:
    """Return log P(feature | class) - log P(feature | rest), smoothed over all `width` features."""
    p, q = rows.T @ positive + SMOOTHING_RATIO, rows.T @ negative + SMOOTHING_RATIO
    spare = SMOOTHING_RATIO * (width - rows.shape[1])
    result: Floats = np.log(p / (p.sum() + spare)) - np.log(q / (q.sum() + spare))
    return result


def _logistic(rows: Sparse, positive: Floats, total: Floats) -> tuple[Floats, float]:
    """Fit balanced logistic regression on soft targets: a post stands once for each class it may have."""
    from sklearn.linear_model import LogisticRegression

    yes, no = np.flatnonzero(positive > 0), np.flatnonzero(total - positive > 0)
    weight = np.concatenate([positive[yes], (total - positive)[no]])
    label = np.concatenate([np.ones(len(yes)), np.zeros(len(no))])
    side = np.array([weight[label == 0].sum(), weight[label == 1].sum()])
    weight = weight * (weight.sum() / (2 * side))[label.astype(int)]
    model = LogisticRegression(C=REGULARISATION, max_iter=100, tol=1e-3)
    model.fit(rows[np.concatenate([yes, no])], label, sample_weight=weight)
    return model.coef_[0], float(model.intercept_[0])


def _naive_bayes_em(labelled: Sparse, targets: Floats, unlabelled: Sparse, temper: float) -> Floats:
    """Return centred log-likelihoods [F, K] of multinomial naive Bayes after a few rounds of EM.

    Class priors are held equal: left free, EM drifts towards one class when topics, not classes, split
    the pool.
    """
    known = labelled.T @ targets + SMOOTHING_EM
    scores = _centred_log(known)
    for _ in range(EM_ITERATIONS):
        logits = temper * (unlabelled @ scores)
        probs = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs /= probs.sum(axis=1, keepdims=True)
        scores = _centred_log(known + unlabelled.T @ probs)
    return scores


def _centred_log(counts: Floats) -> Floats:
    log = np.log(counts / counts.sum(axis=0))
    centred: Floats = log - log.mean(axis=1, keepdims=True)
    return centred

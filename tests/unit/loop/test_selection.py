"""Selection: quotas, ties, chunks, and that memory does not grow with the pool."""

import numpy as np
import pytest
from class_helpers import both
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain import selection
from selftrain.errors import RecipeError, SplitError
from selftrain.selection import Mixed, RandomPosts, Selection, TopK, Uncertain, quotas, selected

CLASSES = ("ham", "spam")


def whole(logits):
    return [(np.arange(len(logits)), both(logits))]


def select(chunks, k, shares="equal"):
    return TopK(k, shares).select(chunks, most=None, classes=CLASSES, seed=0)


def chosen(logits, k, shares="equal"):
    return select(whole(logits), k, shares).positions.tolist()


LOGITS = [3.0, -2.0, 1.0, 2.5, -0.5, -4.0, 0.2, 2.0]


def test_equal_quotas_take_the_most_confident_half_of_each_class():
    assert chosen(LOGITS, 4) == [5, 0, 3, 1]


def test_an_odd_k_gives_the_odd_post_to_the_positive_class():
    assert chosen(LOGITS, 3) == [5, 0, 3]


def test_natural_quotas_follow_the_classifiers_own_shares():
    # 5 of 8 are positive: 2.5 of 4, rounded up
    assert chosen(LOGITS, 4, "natural") == [5, 0, 3, 7]


def test_custom_quotas_go_by_class_name():
    shares = {"spam": 0.25, "ham": 0.75}
    assert chosen(LOGITS, 4, shares) == [5, 0, 1, 4]


@pytest.mark.parametrize(
    "shares",
    [{"spam": 0.5}, {"spam": 0.5, "ham": 0.6}, {"spam": 1.5, "ham": -0.5}, {"spam": 0.5, "egg": 0.5}],
)
def test_shares_that_do_not_fit_are_refused(shares):
    with pytest.raises(SplitError, match="expected 'ham' and 'spam' adding up to 1"):
        quotas(10, shares, classes=CLASSES)


def test_a_class_with_too_few_posts_leaves_the_rest_of_its_quota_unused():
    assert chosen([3.0, 2.0, 1.0, -1.0], 6) == [0, 1, 2, 3]
    assert chosen([3.0, 2.5, 2.0, 1.5, -1.0], 4) == [0, 1, 4]


def test_a_logit_of_zero_is_negative():
    assert chosen([0.0, 1.0], 2) == [1, 0]
    assert chosen([0.0, 0.0], 2) == [0]


def test_ties_go_to_the_earlier_post_in_whatever_order_they_arrive():
    positions = np.array([9, 2, 7, 4, 1, 8])
    logits = both([1, 1, 1, -1, -1, -1])
    assert select([(positions, logits)], 2).positions.tolist() == [1, 2]
    assert select([(positions[::-1], logits[::-1])], 4).positions.tolist() == [1, 2, 4, 7]


def test_an_empty_pool_gives_an_empty_selection():
    assert select([], 5).positions.tolist() == []


def by_one_sort(logits, k, shares):
    """The same, from one sort of everything."""
    up = [i for i in range(len(logits)) if logits[i] > 0]
    down = [i for i in range(len(logits)) if not logits[i] > 0]
    share = {"equal": 0.5, "natural": len(up) / max(len(logits), 1)}[shares] if logits.size else 0.5
    n_up = int(np.floor(k * share + 0.5))

    def order(i):
        return (-abs(logits[i]), i)

    return sorted(sorted(up, key=order)[:n_up] + sorted(down, key=order)[: k - n_up], key=order)


@given(
    st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]), max_size=60),
    st.integers(1, 20),
    st.sampled_from(["equal", "natural"]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_any_chunking_in_any_order_is_one_sort_of_the_whole(values, k, shares, random):
    logits = np.array(values, np.float32)
    order = list(range(len(values)))
    random.shuffle(order)
    chunks = []
    while order:
        size = random.randint(1, 9)
        part, order = np.array(order[:size], np.int64), order[size:]
        chunks.append((part, both(logits[part])))
    found = select(chunks, k, shares)
    assert found.positions.tolist() == by_one_sort(logits, k, shares)
    np.testing.assert_array_equal(found.logits, both(logits[found.positions]))


@pytest.mark.parametrize("shares", ["equal", "natural"])
def test_only_k_posts_a_class_are_held_while_a_large_pool_streams_by(monkeypatch, shares):
    held = []

    class Watched(selection._Best):
        def offer(self, posts):
            super().offer(posts)
            # a slice would keep the array it was cut from alive
            bases = [a.nbytes if a.base is None else a.base.nbytes for a in self.posts]
            held.append((len(self.posts.positions), max(bases)))

    monkeypatch.setattr(selection, "_Best", Watched)
    random = np.random.default_rng(0)
    chunks = ((np.arange(i, i + 500), both(random.normal(size=500))) for i in range(0, 50_000, 500))
    assert len(select(chunks, 10, shares).positions) == 10
    assert len(held) == 200
    assert max(count for count, _ in held) == 10
    assert max(size for _, size in held) <= 10 * 8


# ---- other criteria than confidence ---------------------------------------------------------------------

SPREAD = np.random.default_rng(1).permutation(np.linspace(-3, 3.1, 60)).astype(np.float32)


def picked(selector, logits=SPREAD, most=None, seed=0, size=7):
    """Positions, from chunks of `size` posts."""
    positions = np.arange(len(logits))
    chunks = [(positions[i : i + size], both(logits[i : i + size])) for i in range(0, len(logits), size)]
    found = selector.select(chunks, most=most, classes=CLASSES, seed=seed)
    np.testing.assert_array_equal(found.logits, both(logits[found.positions]))
    assert len(set(found.positions.tolist())) == len(found.positions)
    return found.positions.tolist()


def test_uncertain_takes_the_smallest_margins_whatever_their_class():
    assert chosen_by(Uncertain(3)) == [6, 4, 2]
    assert picked(Uncertain(9)) == np.argsort(np.abs(SPREAD), kind="stable")[:9].tolist()


def chosen_by(selector):
    return picked(selector, np.array(LOGITS, np.float32))


def test_uncertain_with_quotas_takes_them_of_both_classes():
    assert chosen_by(Uncertain(2, "equal")) == [6, 4]
    assert chosen_by(Uncertain(4, {"spam": 0.25, "ham": 0.75})) == [6, 4, 1, 5]


def test_top_k_without_quotas_takes_the_surest_of_all():
    assert chosen_by(TopK(3, "any")) == [5, 0, 3]


def test_random_posts_depend_on_the_seed_and_not_on_the_chunks():
    first = picked(RandomPosts(20), seed=3)
    assert first == picked(RandomPosts(20), seed=3, size=60)
    assert first != picked(RandomPosts(20), seed=4)
    # the first ten of twenty are the ten: a smaller budget is a beginning of a larger one
    assert picked(RandomPosts(20), seed=3, most=10) == first[:10]


def test_random_posts_are_drawn_evenly():
    counts = np.zeros(60)
    for seed in range(500):
        counts[picked(RandomPosts(15), seed=seed, size=60)] += 1
    # 125 expected of each post, standard deviation 9.7
    assert abs(counts.mean() - 125) < 1e-9
    assert counts.std() < 14
    assert abs(counts[::2].sum() - counts[1::2].sum()) < 4 * np.sqrt(500 * 15)


def test_random_posts_with_quotas_are_so_many_of_each_class():
    found = SPREAD[picked(RandomPosts(10, "equal"))]
    assert (found > 0).sum() == 5


def test_a_mix_takes_each_post_once():
    mix = {"uncertain": 0.5, "confident": 0.25, "random": 0.25}
    found = picked(Mixed(20, mix))
    assert len(found) == 20
    margins = np.argsort(np.abs(SPREAD), kind="stable").tolist()
    assert found[:10] == margins[:10]
    assert set(found[10:15]) == set(margins[-5:])
    # a pool smaller than what is asked is chosen whole, by whichever criterion
    assert sorted(picked(Mixed(20, mix), SPREAD[:12])) == list(range(12))


def test_a_mix_of_one_criterion_is_that_selector():
    assert picked(Mixed(9, {"uncertain": 1.0})) == picked(Uncertain(9))
    assert picked(Mixed(9, {"random": 1.0}), seed=5) == picked(RandomPosts(9), seed=5)
    assert picked(Mixed(9, {"confident": 1.0}, "equal")) == picked(TopK(9))


@given(
    st.integers(1, 70), st.floats(0, 1), st.sampled_from(["any", "equal", "natural"]), st.integers(0, 2**40)
)
@settings(max_examples=100, deadline=None)
def test_any_mix_gives_the_posts_asked_for_and_no_more(k, share, shares, seed):
    mix = {"uncertain": share, "random": (1 - share) / 2, "confident": (1 - share) / 2}
    found = picked(Mixed(k, mix, shares), seed=seed)
    assert len(found) <= k
    if shares == "any":
        assert len(found) == min(k, 60)


@pytest.mark.parametrize("mix", [{"uncertain": 0.5}, {"sure": 1.0}, {"uncertain": 1.5, "random": -0.5}, {}])
def test_a_mix_that_is_none_is_refused(mix):
    with pytest.raises(SplitError, match="expected shares of uncertain, confident, random that add up to 1"):
        Mixed(10, mix)


def test_the_budget_left_cuts_every_selector():
    for selector in (TopK(9), Uncertain(9), RandomPosts(9), Mixed(9)):
        assert len(picked(selector, most=4)) == 4


@pytest.mark.parametrize("selector", [TopK(9), Uncertain(9), RandomPosts(9), Mixed(9)])
def test_a_post_that_cannot_be_read_is_never_chosen(selector):
    """Its logits are NaN, and a candidate's probability has to be a number."""
    logits = np.array([np.nan, 2.0, -1.0, np.nan, 0.5], np.float32)
    assert sorted(picked(selector, logits)) == [1, 2, 4]


@pytest.mark.parametrize("selector", [Uncertain(10), RandomPosts(10), Mixed(10)])
def test_no_selector_holds_more_than_k_a_criterion(monkeypatch, selector):
    held = []

    class Watched(selection._Best):
        def offer(self, posts):
            super().offer(posts)
            held.append(len(self.posts.positions))

    monkeypatch.setattr(selection, "_Best", Watched)
    logits = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    assert len(picked(selector, logits, size=500)) == 10
    assert max(held) == 10


class Own:
    """A selector of somebody's own: what it gives of positions [n] and logits [n, K]."""

    def __init__(self, give):
        self.give = give

    def select(self, chunks, *, most, classes, seed):
        return Selection(*self.give(*map(np.concatenate, zip(*chunks, strict=True))))


def asked(give, most=4):
    positions = np.array([10, 20, 30, 40, 50, 60])
    chunks = [(positions[:3], both([1.0, -1.0, 2.0])), (positions[3:], both([0.0, 3.0, 1.0]))]
    return selected(Own(give), chunks, among=positions, most=most, classes=CLASSES, seed=0)


def test_what_a_selector_chooses_is_taken_as_arrays():
    found = asked(lambda positions, logits: (positions[:2].tolist(), logits[:2].tolist()))
    assert found.positions.tolist() == [10, 20]
    assert found.logits.tolist() == [[0, 1], [0, -1]]
    assert len(asked(lambda positions, logits: ([], logits[:0])).positions) == 0


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda p, z: (np.arange(2), z[:2]), r"position 0, which is no open post of the pool: .*not places"),
        (lambda p, z: (-p[:1], z[:1]), "position -10"),
        (lambda p, z: (p[[0, 0, 1]], z[:3]), "2 posts as 3: expected each once"),
        (lambda p, z: (p[:5], z[:5]), "5 posts: expected `most`, 4, or fewer"),
        (lambda p, z: (p[:2], z[:3]), r"logits of shape \(3, 2\): expected integers \[k\] and \[k, 2\]"),
        (lambda p, z: (p[:2], z[:2, 1]), r"logits of shape \(2,\)"),
        (lambda p, z: (p[:2] / 2, z[:2]), r"positions of shape \(2,\) \(float64\)"),
        (lambda p, z: (p[:2], z[:2] * np.nan), "not finite"),
    ],
)
def test_what_no_selector_may_choose_is_refused_by_name(give, message):
    with pytest.raises(RecipeError, match=rf"test_selection:Own as selector: it chose .*{message}"):
        asked(give)

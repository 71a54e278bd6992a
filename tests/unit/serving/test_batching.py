"""The queue: who shares a model call with whom, in which order, what a fault or a goodbye costs others."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from serving_helpers import HeldPredictor, TextPredictor

from selftrain.data.posts import Post
from selftrain.errors import DrainingError, QueueFullError, ScoringError, ServingError
from selftrain.serving.batching import Batcher

WAIT = 30


class Observer:
    """An observer."""

    def __init__(self):
        self.batches = []

    def batch(self, posts, seconds):
        assert seconds >= 0
        self.batches.append(posts)


def posts_of(*texts):
    return [Post(f"p{n}", text) for n, text in enumerate(texts)]


@pytest.fixture
def make():
    """Batchers with their model loaded; closed at the end."""
    made = []

    def build(predictor, **options):
        loaded = threading.Event()
        settings = {"max_batch": 4, "max_wait": 0.0, "max_queue": 100, "observe": Observer().batch} | options
        batcher = Batcher(lambda: predictor, **settings)
        batcher.start(loaded.set)
        assert loaded.wait(WAIT)
        made.append((batcher, predictor))
        return batcher

    yield build
    for batcher, predictor in made:
        if isinstance(predictor, HeldPredictor):
            predictor.go.release(1000)
        batcher.close()


def texts(results):
    return [round(one.probs["yes"], 6) for one in results]


def test_one_post_is_scored_before_the_model_counts_as_loaded(make):
    predictor = TextPredictor()
    batcher = make(predictor)
    assert batcher.predictor is predictor
    assert [len(call) for call in predictor.calls] == [1]


def test_results_come_in_the_order_of_the_posts_whatever_the_batches(make):
    predictor, seen = TextPredictor(), Observer()
    batcher = make(predictor, observe=seen.batch)
    probs = [n / 100 for n in range(11)]
    assert texts(batcher.submit(posts_of(*map(str, probs))).result(WAIT)) == probs
    batcher.close()
    assert seen.batches == [4, 4, 3]


def test_requests_that_wait_share_a_call(make):
    predictor = HeldPredictor()
    batcher = make(predictor, max_batch=8)
    first = batcher.submit(posts_of("0.1"))
    assert predictor.entered.acquire(timeout=WAIT)
    others = [batcher.submit(posts_of(f"0.{n}")) for n in range(2, 6)]
    predictor.go.release(2)
    assert [texts(one.result(WAIT)) for one in (first, *others)] == [[0.1], [0.2], [0.3], [0.4], [0.5]]
    assert predictor.calls[1:] == [["0.1"], ["0.2", "0.3", "0.4", "0.5"]]


def test_a_post_waits_for_company_but_a_full_batch_does_not(make):
    predictor = TextPredictor()
    batcher = make(predictor, max_batch=3, max_wait=3600.0)
    waiting = [batcher.submit(posts_of("0.1")), batcher.submit(posts_of("0.2"))]
    assert not any(one.done() for one in waiting)
    third = batcher.submit(posts_of("0.3"))
    assert [texts(one.result(WAIT)) for one in (*waiting, third)] == [[0.1], [0.2], [0.3]]
    assert predictor.calls[1:] == [["0.1", "0.2", "0.3"]]


def test_a_lone_post_is_scored_once_its_wait_is_over(make):
    assert texts(make(TextPredictor(), max_wait=0.01).submit(posts_of("0.7")).result(WAIT)) == [0.7]


def test_a_large_request_does_not_starve_a_small_one(make):
    predictor = HeldPredictor()
    batcher = make(predictor, max_queue=1000)
    large = batcher.submit(posts_of(*["large"] * 256))
    assert predictor.entered.acquire(timeout=WAIT)
    small = batcher.submit(posts_of("0.9"))
    other = batcher.submit(posts_of("0.8", "0.8", "0.8"))
    predictor.go.release(2)
    small.result(WAIT)
    # the first call was under way; the next one held one post of each request in turn
    assert predictor.calls[2] == ["large", "0.9", "0.8", "large"]
    predictor.go.release(2)
    assert texts(other.result(WAIT)) == [0.8] * 3
    assert len(predictor.calls) <= 6
    assert not large.done()


def test_a_full_queue_refuses_and_says_how_full(make):
    predictor = HeldPredictor()
    batcher = make(predictor, max_queue=5, max_batch=1)
    batcher.submit(posts_of("0.1"))
    assert predictor.entered.acquire(timeout=WAIT)
    held = batcher.submit(posts_of("0.2", "0.3", "0.4"))
    with pytest.raises(QueueFullError, match="3 posts wait and 3 more were given; at most 5"):
        batcher.submit(posts_of("0.5", "0.6", "0.7"))
    assert batcher.queued == 3
    fitting = batcher.submit(posts_of("0.5", "0.6"))
    predictor.go.release(6)
    assert texts(held.result(WAIT)) == [0.2, 0.3, 0.4]
    assert texts(fitting.result(WAIT)) == [0.5, 0.6]
    assert batcher.queued == 0


def test_a_fault_fails_the_requests_of_its_batch_and_no_others(make, caplog):
    predictor, seen = HeldPredictor(), Observer()
    batcher = make(predictor, max_batch=2, observe=seen.batch)
    batcher.submit(posts_of("0.1"))
    assert predictor.entered.acquire(timeout=WAIT)
    struck = batcher.submit(posts_of("raise", "0.2", "0.3", "0.4"))
    beside = batcher.submit(posts_of("0.5"))
    later = batcher.submit(posts_of("0.6"))
    predictor.go.release(10)
    for one in (struck, beside):
        with pytest.raises(ScoringError, match="ArithmeticError"):
            one.result(WAIT)
    assert texts(later.result(WAIT)) == [0.6]
    # what was left of the struck request is not scored for nobody
    assert predictor.calls[1:] == [["0.1"], ["raise", "0.5"], ["0.6"]]
    assert "asked to fail" in caplog.text
    assert texts(batcher.submit(posts_of("0.7")).result(WAIT)) == [0.7]
    batcher.close()
    assert seen.batches == [1, 2, 1, 1]


def test_a_model_that_loses_a_result_is_a_fault_too(make):
    class Loses(TextPredictor):
        def predict(self, posts):
            return super().predict(posts)[: 1 if not self.calls[1:] else 0]

    with pytest.raises(ScoringError):
        make(Loses()).submit(posts_of("0.1")).result(WAIT)


def test_a_post_that_cannot_be_scored_is_a_result(make):
    results = make(TextPredictor()).submit(posts_of("fail", "0.2")).result(WAIT)
    assert results[0].reason
    assert texts(results[1:]) == [0.2]


def test_a_cancelled_request_is_taken_out_of_the_queue_and_breaks_nothing(make):
    predictor, released = HeldPredictor(), []
    batcher = make(predictor, max_batch=2, max_queue=4)
    running = batcher.submit(posts_of("0.1", "0.2", "0.3"), lambda: released.append("running"))
    assert predictor.entered.acquire(timeout=WAIT)
    waiting = batcher.submit(posts_of("gone", "gone", "gone"), lambda: released.append("waiting"))
    with pytest.raises(QueueFullError):
        batcher.submit(posts_of("0.4"))
    assert waiting.cancel()
    stays = batcher.submit(posts_of("0.4"), lambda: released.append("stays"))
    assert released == ["waiting"]
    assert running.cancel()
    assert released == ["waiting"], "the model still reads the images of the batch under way"
    assert batcher.queued == 1
    predictor.go.release(10)
    assert texts(stays.result(WAIT)) == [0.4]
    batcher.close()
    assert released == ["waiting", "running", "stays"]
    assert predictor.calls[1:] == [["0.1", "0.2"], ["0.4"]]
    with pytest.raises(CancelledError):
        running.result(WAIT)


def test_cancelling_all_that_waits_for_company_leaves_the_thread_waiting(make):
    predictor = TextPredictor()
    batcher = make(predictor, max_wait=0.2)
    for _ in range(3):
        assert batcher.submit(posts_of("gone")).cancel()
    assert texts(batcher.submit(posts_of("0.3")).result(WAIT)) == [0.3]
    assert ["gone"] not in predictor.calls


def test_closing_finishes_what_waits_and_takes_no_more(make):
    predictor = HeldPredictor()
    batcher = make(predictor, max_batch=1, max_wait=3600.0)
    taken = [batcher.submit(posts_of(f"0.{n}")) for n in range(1, 5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while True:
        try:
            batcher.submit(posts_of("late")).cancel()
        except DrainingError:
            break
    predictor.go.release(10)
    closing.join(WAIT)
    assert not closing.is_alive()
    assert [texts(one.result(0)) for one in taken] == [[0.1], [0.2], [0.3], [0.4]]


@pytest.mark.parametrize("first", ["raise", "fail"])
def test_a_model_that_cannot_be_loaded_or_scores_nothing_is_told(first):
    class Broken(TextPredictor):
        def predict(self, posts):
            return super().predict([Post("x", first) for _ in posts])

    loaded = threading.Event()
    batcher = Batcher(Broken, max_batch=1, max_wait=0, max_queue=1, observe=Observer().batch)
    early = batcher.submit(posts_of("0.1"))
    batcher.start(loaded.set)
    assert loaded.wait(WAIT)
    assert batcher.predictor is None
    assert isinstance(batcher.failure, ArithmeticError if first == "raise" else ServingError)
    with pytest.raises(ScoringError, match="could not be loaded"):
        early.result(WAIT)
    with pytest.raises(DrainingError):
        batcher.submit(posts_of("0.2"))


# ---- fairness ----


def taken_of(batcher, count):
    """The texts of the next posts, as the model's thread would take them."""
    return [one.post.text for _ in range(count) for one in batcher._take()]


@pytest.fixture
def waiting():
    """One that has not begun: what it would take is looked at."""
    return Batcher(TextPredictor, max_batch=1, max_wait=0, max_queue=64, observe=Observer().batch)


def test_clients_share_the_model_whatever_the_number_of_their_requests(waiting):
    for number in range(6):
        waiting.submit(posts_of(f"a{number}", f"a{number}"), client="a")
    waiting.submit(posts_of("b", "b", "b"), client="b")
    assert taken_of(waiting, 6) == ["a0", "b", "a1", "b", "a2", "b"]
    assert taken_of(waiting, 9) == ["a3", "a4", "a5", "a0", "a1", "a2", "a3", "a4", "a5"]
    assert waiting.queued == 0


def test_a_short_post_does_not_wait_for_long_ones_that_came_before(waiting):
    long = "long " * 400
    for _ in range(3):
        waiting.submit(posts_of(long, long))
    waiting.submit(posts_of("short", "short"))
    # a long one costs as much as five: that much of short ones comes first
    assert [text[:5] for text in taken_of(waiting, 4)] == ["short", "short", "long ", "long "]


def test_long_posts_and_albums_make_smaller_batches():
    batcher = Batcher(TextPredictor, max_batch=4, max_wait=0, max_queue=64, observe=Observer().batch)
    albums = [Post(f"p{n}", "album", tuple(Path(f"{k}") for k in range(16))) for n in range(3)]
    batcher.submit(albums)
    assert [len(batcher._take()) for _ in range(3)] == [1, 1, 1]
    batcher.submit(posts_of(*["x"] * 8))
    assert [len(batcher._take()) for _ in range(2)] == [4, 4]


def test_in_a_full_queue_a_large_request_gives_way_to_a_small_one(waiting):
    small = waiting.submit(posts_of("0.1"), client="b")
    large = waiting.submit(posts_of(*["0.2"] * 63), client="a")
    fits = waiting.submit(posts_of("0.3"), client="b")
    with pytest.raises(QueueFullError, match="at most 64 may wait"):
        large.result(WAIT)
    assert waiting.queued == 2
    assert not small.done()
    assert not fits.done()
    assert taken_of(waiting, 2) == ["0.1", "0.3"]

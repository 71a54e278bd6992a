"""Requests that wait at the same time share one model call; one thread owns the model.

Fair by cost, not by request: clients share the model's time equally, and so do the requests of a client. Next
is always the post that would be through first if all were served side by side (self-clocked fair queueing,
Golestani 1994), so that a short post is in the next batch or the one after it, however many posts, pages of
text or albums wait in other requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import NamedTuple

from selftrain.data.posts import Post
from selftrain.errors import DrainingError, QueueFullError, ScoringError
from selftrain.models.predictor import Prediction, Predictor

Predictions = Future[list[Prediction]]

_log = logging.getLogger(__name__)
CROWDING = 16
"""A request gives way in a full queue to one with so many times fewer posts."""
COST_A_POST = 4.0
"""A batch takes posts of this cost on average, at most: long texts and albums make smaller batches."""
_FIRST_POST = Post("ready", "One post, scored before the server says that it is ready.")


def cost_of(post: Post) -> int:
    """Return about what a post costs the model; 1 for a short text."""
    return 1 + min(len(post.text), 1000) // 250 + 4 * len(post.images)


class _Job:
    """The posts of one request: those still to be taken, those in the model's hands, the results so far."""

    def __init__(self, posts: Sequence[Post], release: Callable[[], None], client: str) -> None:
        self.scores: Predictions = Future()
        self.client = client
        self.through = 0.0  # the virtual time at which what was taken of it is through
        self.release: Callable[[], None] | None = release
        self.taken = 0
        self.arrived = time.monotonic()
        self.waiting: deque[tuple[int, Post]] = deque(enumerate(posts))
        self.results: dict[int, Prediction] = {}
        self.size = len(posts)

    @property
    def next(self) -> float:
        """When its next post would be through."""
        return self.through + cost_of(self.waiting[0][1])


class _Client:
    """The requests of one client: `now` is its own virtual time, by which they share what it gets."""

    def __init__(self, through: float) -> None:
        self.jobs: list[_Job] = []
        self.through, self.now = through, 0.0

    @property
    def posts(self) -> int:
        """How many of its posts wait."""
        return sum(len(job.waiting) for job in self.jobs)


class _Taken(NamedTuple):
    """One post of a batch: of which request, at which place in it."""

    job: _Job
    place: int
    post: Post


class Batcher:
    """The queue, and the thread that loads the model and scores batches out of it.

    Args:
        load: Gives the model; called in the thread that will own it.
        max_batch, max_queue: Posts of one model call, and posts that may wait.
        max_wait: Seconds that the first post of a batch waits for company.
        observe: Gets posts and seconds of every model call, whether it went well or not.
    """

    def __init__(
        self,
        load: Callable[[], Predictor],
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        observe: Callable[[int, float], None],
    ) -> None:
        self.predictor: Predictor | None = None
        self.failure: Exception | None = None
        self._load, self._observe = load, observe
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._clients: dict[str, _Client] = {}
        self._now = 0.0  # virtual time
        self.queued = 0  # posts that wait
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    @property
    def busy(self) -> bool:
        """Whether the model's thread runs: after `close` only if it was loading, or was not waited for."""
        return self._thread.is_alive()

    def start(self, on_loaded: Callable[[], None] = lambda: None) -> None:
        """Begin to load the model.

        `on_loaded` is called in the model's thread when `predictor`, which then has scored one post, or
        `failure`, why there never will be one, has been set.
        """
        self._on_loaded = on_loaded
        self._thread.start()

    def submit(
        self, posts: Sequence[Post], release: Callable[[], None] = lambda: None, *, client: str = ""
    ) -> Predictions:
        """Queue a request's posts, at least one; cancelling the result takes back those that still wait.

        Where the queue is full, a request with `CROWDING` times as many posts in it gives way. `release` is
        called once, in any thread, as soon as the model will not touch these posts any more: after a
        cancellation too a batch may still be reading their images. Clients share the model equally.

        Raises:
            QueueFullError: They do not fit into the queue.
            DrainingError: `close` was called.
        """
        job = _Job(posts, release, client)
        crowded_out: list[_Job] = []
        with self._changed:
            if self._closing:
                raise DrainingError("the server is about to end and takes no more posts: ask another one")
            while self.queued + job.size > self._max_queue:
                # whoever has most in the queue loses most of it
                longest = max(
                    self._jobs,
                    key=lambda one: (self._clients[one.client].posts, len(one.waiting)),
                    default=None,
                )
                if longest is None or len(longest.waiting) < CROWDING * job.size:
                    full = self._full(job.size)
                    break
                self._remove(longest)
                crowded_out.append(longest)
            else:
                full = None
                owner = self._clients.setdefault(client, _Client(self._now))
                job.through = owner.now
                owner.jobs.append(job)
                self.queued += job.size
                self._changed.notify_all()
        for one in crowded_out:
            self._fail(one, self._full(one.size))
        if full is not None:
            raise full
        job.scores.add_done_callback(lambda done: self._forget(job) if done.cancelled() else None)
        return job.scores

    def close(self) -> None:
        """Take no more posts, finish those that wait, and let the thread end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive() and self.predictor is not None:  # loading is not waited for
            self._thread.join()

    # ---- the model's thread -------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            predictor = self._load()
            first = predictor.predict([_FIRST_POST])[0]
            if first.reason:
                raise ScoringError(f"the model cannot score a post of plain words: {first.reason}")  # noqa: TRY301
        except Exception as error:
            self.failure = error
            with self._changed:
                self._closing = True
                waiting = self._jobs
            for job in waiting:  # nobody will ever score what waits
                self._fail(job, ScoringError(f"the model could not be loaded: {error}"))
            self._on_loaded()
            return
        self.predictor = predictor
        self._on_loaded()
        while batch := self._next_batch():
            self._score(predictor, batch)

    def _next_batch(self) -> list[_Taken]:
        """Wait for posts, and a little for more of them; empty when closed and nothing waits."""
        with self._changed:
            while not self._closing:
                oldest = min((job.arrived for job in self._jobs), default=None)
                left = None if oldest is None else oldest + self._max_wait - time.monotonic()
                if left is not None and (left <= 0 or self.queued >= self._max_batch):
                    break
                self._changed.wait(left)
            return self._take()

    # ---- the queue; the lock is held ---------------------------------------------------------------

    @property
    def _jobs(self) -> list[_Job]:
        return [job for client in self._clients.values() for job in client.jobs]

    def _full(self, posts: int) -> QueueFullError:
        return QueueFullError(
            f"{self.queued} posts wait and {posts} more were given; at most {self._max_queue} may wait: try"
            " again later"
        )

    def _remove(self, job: _Job) -> None:
        """Take a request out of the queue, with what of it waits."""
        client = self._clients[job.client]
        client.jobs.remove(job)
        if not client.jobs:
            del self._clients[job.client]
        self.queued -= len(job.waiting)
        job.waiting.clear()

    def _take(self) -> list[_Taken]:
        """Take the posts of a batch: those that are through first, as many as one call can do in a while."""
        batch: list[_Taken] = []
        room = COST_A_POST * self._max_batch
        while self._clients and len(batch) < self._max_batch:
            best = [(min(one.jobs, key=lambda job: job.next), one) for one in self._clients.values()]
            job, client = min(best, key=lambda one: one[1].through + cost_of(one[0].waiting[0][1]))
            cost = cost_of(job.waiting[0][1])
            if batch and cost > room:
                break
            room -= cost
            batch.append(_Taken(job, *job.waiting.popleft()))
            job.taken += 1
            self.queued -= 1
            client.now = job.through = job.through + cost
            self._now = client.through = client.through + cost
            if not job.waiting:
                self._remove(job)
        return batch

    # ---- results ------------------------------------------------------------------------------------

    def _score(self, predictor: Predictor, batch: list[_Taken]) -> None:
        started = time.monotonic()
        try:
            try:
                results = predictor.predict([taken.post for taken in batch])
            finally:  # before anybody has an answer: who has one finds it counted
                self._observe(len(batch), time.monotonic() - started)
            if len(results) != len(batch):
                raise ScoringError(f"{len(results)} results for {len(batch)} posts")  # noqa: TRY301
        except Exception as error:
            _log.exception("the model failed over a batch of %d posts", len(batch))
            for job in {id(taken.job): taken.job for taken in batch}.values():
                self._fail(job, ScoringError(f"the model failed: {type(error).__name__}"))
        else:
            for (job, place, _), result in zip(batch, results, strict=True):
                job.results[place] = result
                if len(job.results) == job.size:
                    _settle(job.scores, [job.results[number] for number in range(job.size)])
        for taken in batch:
            with self._changed:
                taken.job.taken -= 1
            self._release_unused(taken.job)

    def _fail(self, job: _Job, error: Exception) -> None:
        self._forget(job)
        _settle(job.scores, error)

    def _forget(self, job: _Job) -> None:
        """Take back what of a request still waits."""
        with self._changed:
            if job.waiting:
                self._remove(job)
                self._changed.notify_all()
        self._release_unused(job)

    def _release_unused(self, job: _Job) -> None:
        with self._changed:
            if job.waiting or job.taken or job.release is None:
                return
            release, job.release = job.release, None
        release()


def _settle(scores: Predictions, outcome: list[Prediction] | Exception) -> None:
    """Settle a request, unless its client went away at this very moment and wants no answer any more."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            scores.set_exception(outcome)
        else:
            scores.set_result(outcome)

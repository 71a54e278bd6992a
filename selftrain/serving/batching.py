"""Requests that wait at the same time share one model call; one thread owns the model.

Fair by post, not by request: a batch takes one post of each waiting request in turn, so that a single post
is in the next batch or the one after it, however many posts of a large request still wait.
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
_FIRST_POST = Post("ready", "One post, scored before the server says that it is ready.")


class _Job:
    """The posts of one request: those still to be taken, those in the model's hands, the results so far."""

    def __init__(self, posts: Sequence[Post], release: Callable[[], None]) -> None:
        self.scores: Predictions = Future()
        self.release: Callable[[], None] | None = release
        self.taken = 0
        self.arrived = time.monotonic()
        self.waiting: deque[tuple[int, Post]] = deque(enumerate(posts))
        self.results: dict[int, Prediction] = {}
        self.size = len(posts)


class _Taken(NamedTuple):
    """One post of a batch: of which request, at which place in it."""

    job: _Job
    place: int
    post: Post


class Batcher:
    """The queue, and the thread that loads the model and scores batches out of it.

    Args:
        load: Gives the model; called in the thread that will own it.
        max_batch: Posts of one model call.
        max_wait: Seconds that the first post of a batch waits for company.
        max_queue: Posts that may wait.
        observe: Gets posts and seconds of every model call, whether it went well or not.
        on_loaded: Called in the model's thread when `predictor` or `failure` has been set.

    Attributes:
        predictor: None until the model is loaded and has scored one post.
        failure: Why it never will be.
    """

    def __init__(
        self,
        load: Callable[[], Predictor],
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        observe: Callable[[int, float], None],
        on_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self.predictor: Predictor | None = None
        self.failure: Exception | None = None
        self._load, self._on_loaded, self._observe = load, on_loaded, observe
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._jobs: deque[_Job] = deque()
        self._queued = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    @property
    def queued(self) -> int:
        """Posts that wait."""
        return self._queued

    @property
    def busy(self) -> bool:
        """Whether the model's thread runs: after `close` only if it was loading, or was not waited for."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to load the model."""
        self._thread.start()

    def submit(self, posts: Sequence[Post], release: Callable[[], None] = lambda: None) -> Predictions:
        """Queue a request's posts, at least one; cancelling the result takes back those that still wait.

        Args:
            posts: Of one request.
            release: Called once, in any thread, as soon as the model will not touch these posts any more:
                after a cancellation too a batch may still be reading their images.

        Raises:
            QueueFullError: They do not fit into the queue.
            DrainingError: `close` was called.
        """
        job = _Job(posts, release)
        with self._changed:
            if self._closing:
                raise DrainingError("the server is about to end and takes no more posts: ask another one")
            if self._queued + job.size > self._max_queue:
                raise QueueFullError(
                    f"{self._queued} posts wait and {job.size} more were given; at most {self._max_queue} may"
                    " wait: try again later"
                )
            self._jobs.append(job)
            self._queued += job.size
            self._changed.notify_all()
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
            for job in list(self._jobs):  # nobody will ever score what waits
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
            while not (self._closing or self._due()):
                oldest = min((job.arrived for job in self._jobs), default=None)
                self._changed.wait(None if oldest is None else oldest + self._max_wait - time.monotonic())
            return self._take()

    def _due(self) -> bool:
        """Tell whether a batch is full, or its first post has waited long enough; the lock is held."""
        if not self._jobs:
            return False
        oldest = min(job.arrived for job in self._jobs)
        return self._queued >= self._max_batch or time.monotonic() - oldest >= self._max_wait

    def _take(self) -> list[_Taken]:
        """Take one post of each request in turn; the lock is held."""
        batch: list[_Taken] = []
        while self._jobs and len(batch) < self._max_batch:
            job = self._jobs.popleft()
            batch.append(_Taken(job, *job.waiting.popleft()))
            job.taken += 1
            if job.waiting:
                self._jobs.append(job)
        self._queued -= len(batch)
        return batch

    def _score(self, predictor: Predictor, batch: list[_Taken]) -> None:
        started = time.monotonic()
        try:
            results = predictor.predict([taken.post for taken in batch])
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
        self._observe(len(batch), time.monotonic() - started)
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
            if job in self._jobs:
                self._jobs.remove(job)
                self._queued -= len(job.waiting)
                job.waiting.clear()
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

"""What a reviewer's page asks for, answered from the ledger and the run: plain values in, JSON values out.

Requests come in several threads; the ledger is used by one at a time. Every answer is on the disk before the
page is answered, and a request whose answer was lost may be repeated: it changes nothing twice. What the
ledger refuses is a `DecisionError`, what its file does not take a `LedgerError`.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable
from itertools import pairwise

from selftrain._util.printable import printable, printable_lines
from selftrain._util.types import Json
from selftrain.data.run_posts import FoundPost, find_posts
from selftrain.errors import DecisionError
from selftrain.review.estimates import ReviewedBatch, batches_of
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import Assignment, LedgerReader, Review, agreement_of
from selftrain.review.opinions import Opinion, Opinions
from selftrain.store.run_dir import RunFolder
from selftrain.web.pictures import as_webp, without_paths

SIDE, QUALITY = 1600, 85
"""Pixels of the longer side of a picture, at most, and its WebP quality."""
REFRESH_SECONDS = 5.0
"""Agreement and pace are read anew after so long: they take all decisions together."""


class Material:
    """What a reviewer sees of a run's posts, and what machines gave, read when first asked for and kept."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._posts: dict[str, FoundPost | None] = {}
        self._opinions = Opinions(folder)
        self._rounds = folder.finished()

    def load(self, post_ids: Iterable[str]) -> None:
        """Read what is not known yet; every manifest is read once however many posts are asked for."""
        wanted = [post_id for post_id in post_ids if post_id not in self._posts]
        if not wanted:
            return
        found = find_posts(self._folder, wanted)
        self._posts |= {post_id: found.get(post_id) for post_id in wanted}
        if (rounds := self._folder.finished()) != self._rounds:
            self._opinions, self._rounds = Opinions(self._folder), rounds

    def __contains__(self, post_id: str) -> bool:
        return post_id in self._posts

    def unknown(self, post_ids: Iterable[str]) -> list[str]:
        """Return posts that neither a manifest nor a verdict of the run knows."""
        asked = list(post_ids)
        self.load(asked)
        return [one for one in asked if self._posts[one] is None and one not in self._opinions]

    def shown(self, post_id: str) -> Json:
        """Return the post itself, as the page takes it: text None where the manifest is gone."""
        self.load([post_id])
        post = self._posts[post_id]
        if post is None:
            return {"text": None, "images": [], "remark": ""}
        return {
            "text": printable_lines(post.text),
            "images": [printable(name) for name in post.names],
            "remark": self.without_paths(post.reason, post_id),
        }

    def opinions(self, post_id: str) -> list[Json]:
        """Return what machines gave, as the page takes it; see `Opinions.of`."""
        self.load([post_id])
        return [_record(one) for one in self._opinions.of(post_id)]

    def picture(self, post_id: str, index: int) -> bytes | None:
        """Return a picture of a post as WebP, at most `SIDE` pixels a side; None: there is none."""
        self.load([post_id])
        post = self._posts[post_id]
        if post is None or not 0 <= index < len(post.images):
            return None
        return as_webp(post.images[index], SIDE, QUALITY)

    def without_paths(self, reason: str, post_id: str) -> str:
        """Return a reason with the post's files as its manifest names them, not where they lie."""
        post = self._posts.get(post_id)
        names = {} if post is None else dict(zip(post.images, post.names, strict=True))
        return printable(without_paths(reason, names))


class ReviewSession:
    """One ledger, which it alone uses from now on, and one run, for all reviewers.

    `show_opinions`: show the machines' labels before the reviewer has answered.
    """

    def __init__(
        self,
        ledger: ReviewLedger,
        material: Material,
        *,
        show_opinions: bool = False,
        refresh_seconds: float = REFRESH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger, self.material, self.show_opinions = ledger, material, show_opinions
        self._lock = threading.Lock()
        self._refresh, self._clock = refresh_seconds, clock
        self._stats: tuple[float, Json] | None = None
        self._estimating = threading.Lock()
        self._estimates: tuple[float, list[Json]] | None = None
        self._places: list[str] = []

    # ---- what a page asks -----------------------------------------------------------------------------

    def begin(self, reviewer: str) -> Json:
        """Return the post of a page that has just opened, and the decision that it could take back."""
        with self._lock:
            return self._now(reviewer) | {"last": self._last(reviewer)}

    def next(self, reviewer: str) -> Json:
        """Return the post that the reviewer should look at, or why there is none."""
        with self._lock:
            return self._now(reviewer)

    def decide(self, reviewer: str, post_id: str, label: str, browser: str = "") -> Json:
        """Save a decision made in `browser`; return the machines' labels of that post, and the next one."""
        with self._lock:
            self.ledger.decide(reviewer, post_id, label, browser=browser)
            return {"answered": self._answered(post_id, label)} | self._now(reviewer)

    def skip(self, reviewer: str, post_id: str) -> Json:
        """Give a post back; return the next one. A skip that was done already is no error."""
        with self._lock:
            held = self.ledger.next_post(reviewer)
            if held is not None and held.item.post_id == post_id:
                self.ledger.skip(reviewer, post_id)
            return self._now(reviewer)

    def undo(self, reviewer: str, post_id: str, browser: str = "") -> Json:
        """Take the decision on a post back, the reviewer's latest; return the post again."""
        with self._lock:
            latest = self.ledger.latest(reviewer)
            if latest is not None and latest.post_id == post_id:
                assignment = self.ledger.undo(reviewer, browser=browser)
            else:  # an answer that was lost: then the post is with them already
                assignment = self.ledger.next_post(reviewer)
            if assignment is None or assignment.item.post_id != post_id:
                raise DecisionError(
                    f"the decision on {printable(post_id)!r} is not {reviewer!r}'s latest: another window"
                    " went on from it; reload the page"
                )
            self._stats = None
            return self._answer(assignment) | {"last": self._last(reviewer)}

    def hold(self, reviewer: str, post_id: str) -> Json:
        """Renew the lease of an open post; `held` is False when it has gone to somebody else."""
        with self._lock:
            assignment = self.ledger.next_post(reviewer)
            return {"held": assignment is not None and assignment.item.post_id == post_id}

    def estimates(self, _: str) -> Json:
        """Return `estimates`: apart from the answers, none of which waits for it."""
        with self._estimating:
            now = self._clock()
            if self._estimates is None or now - self._estimates[0] >= self._refresh:
                with LedgerReader(self.ledger.path) as ledger:
                    self._estimates = now, [_estimate(one) for one in batches_of(ledger)]
            return {"estimates": self._estimates[1]}

    def leave(self, reviewer: str) -> Json:
        """Give back what the reviewer holds."""
        with self._lock:
            self.ledger.release(reviewer)
            return {}

    def post_at(self, place: int) -> str | None:
        """Return the post at a place in the order of review; None where there is none."""
        with self._lock:
            if place >= len(self._places):  # posts may have entered since
                self._places = list(self.ledger.all_drawn())
            return self._places[place] if 0 <= place < len(self._places) else None

    def close(self) -> None:
        """Close the ledger, once nobody uses it."""
        with self._lock:
            self.ledger.close()

    # ---- answers, under the lock ----------------------------------------------------------------------

    def _now(self, reviewer: str) -> Json:
        return self._answer(self.ledger.next_post(reviewer))

    def _answer(self, assignment: Assignment | None) -> Json:
        progress = self.ledger.progress()
        answer: Json = {
            "post": None, "end": None, "progress": progress._asdict() | {"left": progress.left},
            "stats": self._stats_now(fresh=assignment is None),
        }  # fmt: skip
        if assignment is None:  # everything is reviewed, or what is left is not for this reviewer
            answer["end"] = {
                "finished": progress.finished and progress.entered > 0,
                "second_open": progress.doubled - progress.second,
            }
        else:
            post_id = assignment.item.post_id
            if (
                post_id not in self.material
            ):  # a batch was drawn since: one look at the manifests for all of it
                self.material.load(self.ledger.all_drawn())
            answer["post"] = {
                "id": post_id, "shown": printable(post_id), "place": assignment.place,
                **self.material.shown(post_id),
                "opinions": self.material.opinions(post_id) if self.show_opinions else None,
            }  # fmt: skip
        return answer

    def _answered(self, post_id: str, label: str) -> Json:
        return {
            "id": post_id, "shown": printable(post_id), "label": label,
            "opinions": self.material.opinions(post_id),
        }  # fmt: skip

    def _last(self, reviewer: str) -> Json | None:
        """Return the reviewer's latest decision, as `_answered`."""
        latest = self.ledger.latest(reviewer)
        return None if latest is None else self._answered(latest.post_id, latest.label)

    def _stats_now(self, *, fresh: bool) -> Json:
        now = self._clock()
        if self._stats is None or now - self._stats[0] >= self._refresh or fresh:
            decisions = self.ledger.decisions()
            reviews = [review for one in decisions for review in one.reviews]
            pace = seconds_a_post(reviews, self.ledger.lease_seconds)
            self._stats = now, {"agreement": agreement_of(decisions)._asdict(), "seconds": pace}
        return self._stats[1]


def _record(opinion: Opinion) -> Json:
    steps = [
        {**one._asdict(), "state": printable(one.state), "words": printable_lines(one.words)}
        for one in opinion.steps
    ]
    log_odds = [[printable(party), added] for party, added in opinion.log_odds.items()]
    return {"who": printable(opinion.who), "steps": steps, "log_odds": log_odds}


def _estimate(one: ReviewedBatch) -> Json:
    """Return the label error of a batch with its 95 % interval, or in words why there is none."""
    errors = one.errors.to_json() if one.errors else None
    return {"batch": printable(one.name), "errors": errors, "why": printable(one.why)}


def seconds_a_post(reviews: Iterable[Review], longest: float) -> float | None:
    """Return the median seconds from one decision of a reviewer to the next; above `longest` is a break.

    None before anybody has decided twice.
    """
    times: dict[str, list[float]] = {}
    for review in reviews:
        times.setdefault(review.reviewer, []).append(review.decided)
    gaps = [
        later - earlier
        for decided in times.values()
        for earlier, later in pairwise(sorted(decided))
        if later - earlier <= longest
    ]
    return statistics.median(gaps) if gaps else None

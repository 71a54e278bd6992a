"""What machines gave the posts of a folder: for whoever reviews them, on our page or in another tool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from agents.judgment import State, Verdict
from selftrain.review.criticism import CRITICISMS, LabelCriticism, read_criticisms
from selftrain.review.labelling import annotations_of
from selftrain.rounds import replay
from selftrain.store.run_dir import RunFolder

LABEL = str(State.LABEL)


class Statement(NamedTuple):
    """One answer of a machine."""

    state: str  # "label", "abstain" or "failed"; what a criticizer says, in words
    label: str | None  # a class name
    probability: float | None  # of the label
    words: str  # the reasons; may be empty


class Opinion(NamedTuple):
    """What one machine gave a post."""

    who: str
    steps: tuple[Statement, ...]  # oldest first, at least one
    # of a posterior: party -> what it added to the log-odds of the label over the runner-up, in nats
    log_odds: Mapping[str, float] = {}

    @property
    def last(self) -> Statement:
        """What counts."""
        return self.steps[-1]


class Opinions:
    """All that is known of a folder's posts, as it stands now: a run's or a labelling's."""

    def __init__(self, folder: RunFolder) -> None:
        self._verdicts = replay(folder)[0].last_verdicts
        self._annotations = annotations_of(folder)
        # the last batch counts
        self._criticisms = {one.post_id: one for one in read_criticisms(folder.path / CRITICISMS)}

    def __contains__(self, post_id: str) -> bool:
        return post_id in self._verdicts or post_id in self._annotations

    def of(self, post_id: str) -> tuple[Opinion, ...]:
        """Return classifier, agents and posterior, or the annotator; then the criticizer, if one was asked.

        Empty where nothing in the folder is about the post.
        """
        found: tuple[Opinion, ...] = ()
        if (last := self._verdicts.get(post_id)) is not None:
            found = tuple(_of_verdict(last.verdict))
        elif (annotation := self._annotations.get(post_id)) is not None:
            said = Statement(LABEL, annotation.label, annotation.probability, annotation.rationale)
            found = (Opinion("annotator", (said,)),)
        criticism = self._criticisms.get(post_id)
        return (*found, _of_criticism(criticism)) if found and criticism is not None else found


def _of_verdict(verdict: Verdict) -> Iterator[Opinion]:
    own = Statement(LABEL, verdict.classifier_label, verdict.classifier_probability, "")
    yield Opinion("classifier", (own,))
    for role, given in verdict.by_agent().items():
        yield Opinion(role, tuple(Statement(str(j.state), j.label, j.probability, j.reasons) for j in given))
    if (found := verdict.posterior) is not None:
        outcome = "learned" if found.probability >= found.threshold else "not learned"
        words = f"{outcome}: the threshold is {found.threshold:.2f}"
        yield Opinion("posterior", (Statement(LABEL, found.label, found.probability, words),), found.log_odds)


def _of_criticism(found: LabelCriticism) -> Opinion:
    """A criticizer names no class: it estimates how likely the machine's is wrong, and why."""
    doubt = "no estimate" if found.error is None else f"{found.error:.0%} likely wrong"
    words = found.rationale or found.fault
    return Opinion("criticizer", (Statement(f"{found.label}: {doubt}", None, None, words),))

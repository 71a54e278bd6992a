"""Who is asked what, in which order: the ways in which agents can verify a candidate.

A protocol asks nothing itself. It is a generator: it yields the questions that can be asked together, is sent
the judgments in their order, and goes on from there. Whoever runs it decides where the answers come from.

`alone` is what does not depend on the classifier: it is asked once a post, of labelled posts too. `then` goes
on from those judgments once there is a classifier's label.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from agents.judgment import Judgment


class Ask(NamedTuple):
    """One question to one agent.

    Attributes:
        role: Who is asked.
        step: Of the judgment: 0 for the first of its role, 1 after the others were seen.
        template: The prompt file, without its ending.
        own, other: Judgments that the prompt shows.
        classifier: The classifier's label, where the prompt shows it.
    """

    role: str
    step: int
    template: str
    own: Judgment | None = None
    other: Judgment | None = None
    classifier: str | None = None


Asking: TypeAlias = Generator[tuple[Ask, ...], Sequence[Judgment], None]


class Protocol(NamedTuple):
    """One way to verify.

    Attributes:
        name: As recipes write it.
        roles: Who judges, in the order in which verdicts list them.
        deciders: The roles whose last judgments must name the classifier's label.
        form: Which form its answers have unless the user chooses one.
        alone: Asks about a post; the label of no classifier is known.
        then: Goes on from the judgments of `alone` with the classifier's label.
        examples: The prompt file under which labelled posts are shown first; empty: none are shown.
    """

    name: str
    roles: tuple[str, ...]
    deciders: tuple[str, ...]
    form: str
    alone: Callable[[], Asking]
    then: Callable[[Sequence[Judgment], str, bool], Asking]
    examples: str = ""


def _each_alone() -> Asking:
    yield (Ask("reviewer", 0, "reviewer.first"), Ask("user", 0, "user.first"))


def _cross_review(first: Sequence[Judgment], classifier: str, always_cross_review: bool) -> Asking:
    """Where anybody disagrees, both decide again, each seeing the other's first words.

    Two calls are saved unless `always_cross_review`. Whoever disagreed with the classifier is asked first: if
    that agent stays, the candidate is divergent whatever the other would say. And where neither gave a label,
    there is no argument to exchange: shown nothing but the classifier's label, they would at best repeat it.
    """
    if all(judgment.label == classifier for judgment in first):
        return
    if not always_cross_review and all(judgment.label is None for judgment in first):
        return
    asks = [
        Ask(own.agent, 1, f"{own.agent}.again", own, other, classifier)
        for own, other in zip(first, reversed(first), strict=True)
    ]
    if always_cross_review:
        yield tuple(asks)
        return
    for ask in sorted(asks, key=lambda one: one.own is not None and one.own.label == classifier):
        (again,) = yield (ask,)
        if again.label != classifier:
            return


def _reviewed_in_turn() -> Asking:
    (reviewer,) = yield (Ask("reviewer", 0, "reviewer.first"),)
    yield (Ask("user", 0, "user.sequential", other=reviewer),)


def _judge_alone(template: str) -> Callable[[], Asking]:
    def alone() -> Asking:
        yield (Ask("judge", 0, template),)

    return alone


def _nothing_more(first: Sequence[Judgment], classifier: str, always_cross_review: bool) -> Asking:
    return
    yield  # a generator that ends at once


def all_asks(protocol: Protocol, said: Judgment, classifier: str) -> tuple[tuple[Ask, ...], tuple[Ask, ...]]:
    """Every question that `alone` and `then` can ask, with stand-ins for what agents say.

    Args:
        protocol: Whose.
        said: The stand-in for every judgment, of another label than `classifier`.
        classifier: The classifier's label.
    """
    alone, judgments = _driven(protocol.alone(), said)
    then, _ = _driven(protocol.then(judgments, classifier, True), said)
    return alone, then


def _driven(asking: Asking, said: Judgment) -> tuple[tuple[Ask, ...], list[Judgment]]:
    asked: list[Ask] = []
    judgments: list[Judgment] = []
    try:
        asks = next(asking)
        while True:
            answers = [replace(said, agent=ask.role, step=ask.step) for ask in asks]
            asked += asks
            judgments += answers
            asks = asking.send(answers)
    except StopIteration:
        return tuple(asked), judgments


_BOTH, _ONE = ("reviewer", "user"), ("judge",)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("cross_review", _BOTH, _BOTH, "reason_first", _each_alone, _cross_review),
        # the User has read the Reviewer's words and has the last one
        Protocol("sequential", _BOTH, ("user",), "reason_first", _reviewed_in_turn, _nothing_more),
        Protocol("zero_shot", _ONE, _ONE, "label_first", _judge_alone("judge.zero_shot"), _nothing_more),
        Protocol(
            "few_shot",
            _ONE,
            _ONE,
            "label_only",
            _judge_alone("judge.few_shot"),
            _nothing_more,
            examples="judge.few_shot",
        ),
        Protocol("cot", _ONE, _ONE, "cot", _judge_alone("judge.cot"), _nothing_more),
    )
}

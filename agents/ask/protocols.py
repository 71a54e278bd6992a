"""Who is asked what, in which order: the ways in which agents can verify a candidate.

A protocol asks nothing itself. A plan yields the queries that can be asked together; whoever runs it decides
where answers come from, and appends the judgments to the list that the plan was given before it goes on.

The first round does not depend on the classifier: it is asked once a post, of labelled posts too. The cross-
review goes on from its judgments once there is a classifier's label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from agents.ask.answer_schema import AnswerForm
from agents.judgment import Judgment


class Query(NamedTuple):
    """One question to one agent."""

    role: str  # who is asked
    step: int  # of the judgment: 0 for the first of its role, 1 after the others were seen
    template: str  # the prompt file, without its ending
    own: Judgment | None = None  # judgments that the prompt shows
    other: Judgment | None = None
    classifier: str | None = None  # the classifier's label, where the prompt shows it
    argues: bool = False  # gives arguments for the side that the template names, and no label


QueryPlan: TypeAlias = Callable[[Sequence[Judgment]], Iterator[tuple[Query, ...]]]
"""From the judgments so far, which grow meanwhile, to queries that can be asked together, in turns."""


class Protocol(NamedTuple):
    """One way to verify."""

    name: str  # as recipes write it
    roles: tuple[str, ...]  # who judges, in the order in which verdicts list them
    deciders: tuple[str, ...]  # the roles whose last judgments must name the classifier's label
    form: AnswerForm  # of its answers, unless the user chooses one
    first_round: QueryPlan  # asks about a post; the label of no classifier is known
    # goes on from the judgments of the first round with the classifier's label; the flag asks everybody again
    # even where the verdict is settled
    cross_review: Callable[[Sequence[Judgment], str, bool], QueryPlan]
    examples: str = ""  # the prompt file under which labelled posts are shown first; empty: none are shown


def _each_alone(given: Sequence[Judgment]) -> Iterator[tuple[Query, ...]]:
    yield (Query("reviewer", 0, "reviewer.first"), Query("user", 0, "user.first"))


def _both_again(first: Sequence[Judgment], classifier: str, always: bool) -> QueryPlan:
    """Plan to ask both again where anybody disagrees, each seeing the other's first words.

    Two calls are saved unless `always`. Whoever disagreed with the classifier is asked first: if that agent
    stays, the candidate is divergent whatever the other would say. And where neither gave a label, there is
    no argument to exchange: shown nothing but the classifier's label, they would at best repeat it.
    """
    queries = [
        Query(own.agent, 1, f"{own.agent}.again", own, other, classifier)
        for own, other in zip(first, reversed(first), strict=True)
    ]
    settled = all(judgment.label == classifier for judgment in first)
    if settled or (not always and all(judgment.label is None for judgment in first)):
        return lambda given: iter(())
    if always:
        return lambda given: iter([tuple(queries)])
    queries.sort(key=lambda one: one.own is not None and one.own.label == classifier)

    def one_by_one(given: Sequence[Judgment]) -> Iterator[tuple[Query, ...]]:
        for query in queries:
            yield (query,)
            if given[-1].label != classifier:
                return

    return one_by_one


def _in_turn(given: Sequence[Judgment]) -> Iterator[tuple[Query, ...]]:
    yield (Query("reviewer", 0, "reviewer.first"),)
    yield (Query("user", 0, "user.sequential", other=given[-1]),)


def _argue_then_decide(given: Sequence[Judgment]) -> Iterator[tuple[Query, ...]]:
    """Ask both for the best case of a side, then for a decision that knows both cases.

    Nobody holds the side out of conviction, and a small model that agrees with whatever stands before it has
    both before it.
    """
    yield tuple(Query(role, 0, f"{role}.argue", argues=True) for role in _BOTH)
    reviewer, user = given
    yield (
        Query("reviewer", 1, "reviewer.decide", reviewer, user),
        Query("user", 1, "user.decide", user, reviewer),
    )


def _one_judge(template: str) -> QueryPlan:
    return lambda given: iter([(Query("judge", 0, template),)])


def _nothing_more(first: Sequence[Judgment], classifier: str, always: bool) -> QueryPlan:
    return lambda given: iter(())


def alone(protocol: Protocol) -> Protocol:
    """Return the protocol with its first agent alone, whom nobody answers; one judge stays one judge."""
    if len(protocol.roles) == 1:
        return protocol
    first = protocol.roles[:1]
    return protocol._replace(
        name="alone", roles=first, deciders=first, cross_review=_nothing_more,
        first_round=lambda given: iter([(Query(first[0], 0, f"{first[0]}.first"),)]),
    )  # fmt: skip


def all_queries(
    protocol: Protocol, stand_in: Judgment, classifier: str
) -> tuple[tuple[Query, ...], tuple[Query, ...]]:
    """Return every query that the first round and the cross-review can ask.

    `stand_in` is taken for every judgment; it has another label than the `classifier` has.
    """
    first, judgments = _asked(protocol.first_round, stand_in)
    review, _ = _asked(protocol.cross_review(judgments, classifier, True), stand_in)
    return first, review


def _asked(plan: QueryPlan, stand_in: Judgment) -> tuple[tuple[Query, ...], list[Judgment]]:
    asked: list[Query] = []
    given: list[Judgment] = []
    for queries in plan(given):
        asked += queries
        given += [replace(stand_in, agent=query.role, step=query.step) for query in queries]
    return tuple(asked), given


_BOTH, _ONE = ("reviewer", "user"), ("judge",)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("cross_review", _BOTH, _BOTH, "reason_first", _each_alone, _both_again),
        # nobody is asked twice: a posterior hears what each says alone
        Protocol("independent", _BOTH, _BOTH, "reason_first", _each_alone, _nothing_more),
        # the User has read the Reviewer's words and has the last one
        Protocol("sequential", _BOTH, ("user",), "reason_first", _in_turn, _nothing_more),
        # each argues a side first, then both decide, having read both cases
        Protocol("stance", _BOTH, _BOTH, "reason_first", _argue_then_decide, _nothing_more),
        Protocol("zero_shot", _ONE, _ONE, "label_first", _one_judge("judge.zero_shot"), _nothing_more),
        Protocol(
            "few_shot", _ONE, _ONE, "label_only", _one_judge("judge.few_shot"), _nothing_more,
            examples="judge.few_shot",
        ),
        Protocol("cot", _ONE, _ONE, "cot", _one_judge("judge.cot"), _nothing_more),
    )
}  # fmt: skip

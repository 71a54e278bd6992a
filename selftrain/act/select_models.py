"""Who annotates, who criticizes and how, and what budget: tested on a small labelled set.

The published rule ("ACT as Human", arXiv 2511.09833): of the candidate models the most accurate one annotates
and the second most accurate one criticizes; the budget is the share of labels that the annotator gets wrong
and a buffer, 10 % of the posts by default. With a single candidate it criticizes itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar, get_args

import numpy as np

from agents.ask.annotator import Annotation, AnnotationPrompts, Annotator
from agents.ask.criticizer import Criticism, Criticizer
from agents.ask.runner import Runner
from agents.judgment import LabelledPost
from selftrain._util.choices import Mode
from selftrain._util.types import BoolArray, Interval, Json
from selftrain.act.annotation_quality import abs_score
from selftrain.act.budget import filled
from selftrain.errors import BudgetError
from selftrain.models.metrics import auc_interval, wilson

Answers = TypeVar("Answers")
BUFFER = 0.10
_FEW = 30


class AnnotatorScore(NamedTuple):
    """How a model annotates."""

    model: str
    mode: str  # "plain" or "reasoning"
    # right labels among all posts, with its Wilson interval; a post without a label counts as wrong
    accuracy: Interval
    posts: int  # how many there were
    unlabelled: int  # of them, those without a label
    tokens: int  # paid for them now; what was stored already cost nothing


class CriticizerScore(NamedTuple):
    """How a model finds the annotator's errors in one way of asking."""

    model: str
    strategy: str  # see `agents.ask.criticizer.strategies`
    # of its estimates for wrong against right labels, with its bootstrap interval; None where no label, or
    # every label, is wrong
    auc: Interval | None
    abs: float | None  # ABS, see `selftrain.act.annotation_quality`; None where no label is wrong
    mean_error: float  # mean estimate: what the criticizer takes the error share for
    missing: int  # posts without an estimate; they count with the mean of the others
    tokens: int  # as for annotators


class BudgetAdvice(NamedTuple):
    """A budget that should do."""

    error: Interval  # estimated share of wrong machine labels, with its Wilson interval
    buffer: float  # added to it
    share: Interval  # error + buffer, of the posts, with the interval that follows; at most 1
    posts: tuple[int, int, int] | None  # that many of the pool, rounded up; None where its size is not known


class ModelSelection(NamedTuple):
    """What is recommended, and everything that was tried."""

    annotator: AnnotatorScore  # the best mode of the most accurate model
    criticizer: CriticizerScore  # the best strategy of the second most accurate one
    budget: BudgetAdvice  # for what the annotator gets wrong
    annotators: tuple[AnnotatorScore, ...]  # all, best first
    criticizers: tuple[CriticizerScore, ...]  # all, best first among each model
    warnings: tuple[str, ...]  # what to think of before anything is paid for

    def to_json(self) -> Json:
        """Return a record of JSON values."""
        return {name: _record(value) for name, value in self._asdict().items()}

    def lines(self) -> Iterator[str]:
        """Yield what to do, in words."""
        yield f"annotate with {self.annotator.model} ({self.annotator.mode})"
        yield f"criticize with {self.criticizer.model} ({self.criticizer.strategy})"
        advice, posts = self.budget, ""
        if advice.posts is not None:
            value, low, high = advice.posts
            posts = f": {value:,} posts [{low:,}, {high:,}]"
        yield (
            f"wrong labels {advice.error.per_cent()}, buffer {100 * advice.buffer:g} %, budget"
            f" {advice.share.per_cent()}{posts}"
        )
        yield from (f"note: {warning}" for warning in self.warnings)


def _record(value: object) -> object:
    """Return named tuples as records, other tuples as lists, floats with six decimals."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _record(item) for key, item in value._asdict().items()}
    if isinstance(value, tuple):
        return [_record(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def select_models(
    runners: Mapping[str, Runner],
    posts: Sequence[LabelledPost],
    prompts: AnnotationPrompts,
    *,
    strategies: Sequence[str],
    modes: Sequence[str] = get_args(Mode),
    self_criticism: bool = False,
    buffer: float = BUFFER,
    pool: int | None = None,
    rationale_chars: int = 360,
    seed: int = 0,
) -> ModelSelection:
    """Try the candidates on labelled posts and apply the rule.

    Args:
        runners: Model name -> the model at work; tried in this order, which decides between equals.
        strategies, modes: Ways of criticizing and of annotating to try, one or more each.
        self_criticism: Whether the annotator's model is tried as criticizer too, for comparison.
        buffer: Added to the error share, in [0, 1].
        pool: Posts that the budget is for; None: not known.
        rationale_chars: Most characters of reasons.
        seed: Of the models' draws and of the bootstrap.

    Raises:
        BudgetError: No model, mode or strategy, too few posts, one without a label, a buffer outside [0, 1].
        AgentError: Nobody can be asked.
    """
    _check(runners, posts, strategies, modes, buffer)
    # --- everybody annotates; of each model its better mode counts
    options = {"rationale_chars": rationale_chars, "seed": seed}
    annotators = [Annotator(prompts, reasoning=mode == "reasoning", **options) for mode in modes]
    tried = [
        _annotated(model, runner, annotator, posts)
        for model, runner in runners.items()
        for annotator in annotators
    ]
    tried.sort(key=lambda one: -one[0].accuracy.value)
    best, annotations = tried[0]
    # --- the second best model criticizes the best one's labels
    critics = [score.model for score, _ in tried if score.model != best.model][:1] or [best.model]
    if self_criticism and best.model not in critics:
        critics.append(best.model)
    criticizers = [Criticizer(prompts, strategy, **options) for strategy in strategies]
    wrong = np.array([a.label != post.label for a, post in zip(annotations, posts, strict=True)])
    scores = list[CriticizerScore]()
    for model in critics:
        own = list[CriticizerScore]()
        for one in criticizers:
            given, tokens = _paid(runners[model], partial(one.criticize, runners[model], posts, annotations))
            own.append(criticizer_score(model, one.strategy.name, given, wrong, tokens, seed=seed))
        scores += sorted(own, key=lambda one: -(one.auc.value if one.auc is not None else -1.0))
    return ModelSelection(
        best, scores[0], advise(int(wrong.sum()), len(posts), buffer=buffer, pool=pool),
        tuple(score for score, _ in tried), tuple(scores), _warnings(best, scores[0], len(runners)),
    )  # fmt: skip


def _check(
    runners: Mapping[str, Runner],
    posts: Sequence[LabelledPost],
    strategies: Sequence[str],
    modes: Sequence[str],
    buffer: float,
) -> None:
    """Refuse what nothing can be chosen from, before anybody is paid."""
    if not runners or not strategies or not modes or len(posts) < 2 or not 0.0 <= buffer <= 1.0:
        raise BudgetError(
            f"{len(runners)} models, {len(strategies)} strategies, {len(modes)} ways of annotating,"
            f" {len(posts)} labelled posts, buffer {buffer}: expected one or more of each, two posts, a"
            " buffer in [0, 1]"
        )
    unlabelled = sum(post.label is None for post in posts)
    if unlabelled:
        raise BudgetError(f"{unlabelled} of {len(posts)} posts have no label: give labelled ones")


def _annotated(
    model: str, runner: Runner, annotator: Annotator, posts: Sequence[LabelledPost]
) -> tuple[AnnotatorScore, Sequence[Annotation]]:
    given, tokens = _paid(runner, partial(annotator.annotate, runner, posts))
    right = sum(a.label == post.label for a, post in zip(given, posts, strict=True))
    unlabelled = sum(a.label is None for a in given)
    score = AnnotatorScore(model, annotator.name, wilson(right, len(posts)), len(posts), unlabelled, tokens)
    return score, given


def _paid(runner: Runner, ask: Callable[[], Answers]) -> tuple[Answers, int]:
    """Ask, and return what came with the tokens that it took."""
    before = runner.usage()
    return ask(), runner.usage().minus(before).usage.total


def criticizer_score(
    model: str,
    strategy: str,
    criticisms: Sequence[Criticism],
    wrong: BoolArray,
    tokens: int,
    *,
    seed: int = 0,
) -> CriticizerScore:
    """Return how well estimates find the wrong labels.

    A post without a label is wrong for sure and needs no criticizer: it is left out of AUC and ABS.
    """
    asked = np.array([not one.fault.startswith("not annotated") for one in criticisms])
    given = [one.error for one, kept in zip(criticisms, asked, strict=True) if kept]
    errors, faults = filled(given), wrong[asked]
    return CriticizerScore(
        model, strategy, auc_interval(faults, errors, seed),
        abs_score(faults, errors) if len(faults) else None,
        float(errors.mean()) if len(errors) else 1.0, given.count(None), tokens,
    )  # fmt: skip


def advise(wrong: int, total: int, *, buffer: float = BUFFER, pool: int | None = None) -> BudgetAdvice:
    """Return the budget for an annotator that got `wrong` of `total` posts wrong."""
    error = wilson(wrong, total)
    share = Interval(*(min(value + buffer, 1.0) for value in error))
    if pool is None:
        return BudgetAdvice(error, buffer, share, None)
    # a product such as .28 x 100 may come out a hair above the whole number that it is
    value, low, high = (math.ceil(round(one * pool, 6)) for one in share)
    return BudgetAdvice(error, buffer, share, (value, low, high))


def _warnings(annotator: AnnotatorScore, criticizer: CriticizerScore, models: int) -> tuple[str, ...]:
    found = []
    if annotator.posts < _FEW:
        found.append(f"{annotator.posts} labelled posts are few, as the intervals say: label {_FEW} or more")
    if annotator.unlabelled > annotator.posts / 10:
        found.append(
            f"{annotator.model} gave no label to {annotator.unlabelled} of {annotator.posts} posts; they"
            " count as wrong"
        )
    if criticizer.auc is None:
        found.append("the annotator's labels are all right, or all wrong: they judge no criticizer")
    elif criticizer.auc.low <= 0.5:
        found.append(
            f"{criticizer.model} ({criticizer.strategy}) may find errors no better than chance: AUC"
            f" {criticizer.auc.value:.2f}, from {criticizer.auc.low:.2f} to {criticizer.auc.high:.2f}"
        )
    if models == 1:
        found.append("one model alone criticizes itself: a second one finds other errors")
    return tuple(found)

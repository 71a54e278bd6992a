"""What a run has come to: from the files of its folder alone, without torch."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from typing import Any, NamedTuple

from selftrain._util.files import check_regular
from selftrain.report.post_history import JudgedPosts
from selftrain.report.posterior_figures import PosteriorFigures, gather_posterior
from selftrain.review.ledger_reader import LEDGER, is_begun
from selftrain.review.reviewers import unused_labels, waiting_for
from selftrain.rounds import RoundResult, SetCounts, human_label_from_json, replay
from selftrain.state import LoopState, RoundLimits
from selftrain.store.run_dir import RunFolder, read_jsonl


class Score(NamedTuple):
    """Macro-F1 and area under ROC of one round's model; None where there is no test split, or one class."""

    validation: float
    test: float | None
    validation_auc: float | None = None
    test_auc: float | None = None


class Summary(NamedTuple):
    """All finished rounds in a few figures."""

    labels_alone: Score  # round 0
    best: Score  # the last kept round, whose number is `best_round`
    best_round: int
    rounds: int  # finished rounds after round 0: `kept` and `rolled_back` of them
    kept: int
    rolled_back: int
    candidates: int  # posts, summed over those rounds; a post judged twice counts twice
    consistent: int
    divergent: int
    # share of right labels among the candidates, as `SetCounts` has them
    candidate_precision: float | None
    # share of right labels among the pseudo-labels of grown.jsonl whose truth is known. None where no truth
    # is known, as `candidate_precision` is.
    pseudo_label_precision: float | None
    labelled: int  # posts of the labelled set and of the grown dataset
    grown: int
    seconds: float  # time spent in the rounds
    simulated: bool  # whether the agents' answers were drawn from the labels
    human: int = 0  # posts of the grown dataset that people labelled during the run

    def to_json(self) -> dict[str, Any]:
        """Return a record of JSON values."""
        scores = {"labels_alone": self.labels_alone._asdict(), "best": self.best._asdict()}
        return self._asdict() | scores


def summarise(rounds: Sequence[RoundResult]) -> Summary:
    """Sum up finished rounds, round 0 first; at least one."""
    first, last, after = rounds[0], rounds[-1], rounds[1:]
    kept = [one for one in after if one.kept]
    best = kept[-1] if kept else first
    return Summary(
        labels_alone=score(first),
        best=score(best),
        best_round=best.number,
        rounds=len(after),
        kept=len(kept),
        rolled_back=len(after) - len(kept),
        candidates=sum(one.sets.candidates.posts for one in after),
        consistent=sum(one.consistent for one in after),
        divergent=sum(one.divergent for one in after),
        candidate_precision=_precision([one.sets.candidates for one in after]),
        pseudo_label_precision=last.pseudo_labels.precision,
        labelled=first.grown,
        grown=last.grown,
        seconds=sum(one.seconds for one in rounds),
        simulated=any(one.simulated for one in rounds),
        human=last.human.posts if last.human else 0,
    )


def score(one: RoundResult) -> Score:
    """Return macro-F1 and AUC of one round."""
    test, test_auc = (one.test.macro_f1, one.test.auc) if one.test else (None, None)
    return Score(one.validation.macro_f1, test, one.validation.auc, test_auc)


def _precision(sets: Sequence[SetCounts]) -> float | None:
    """Return the mean of the rounds' precisions, each weighted by its posts."""
    known = [(one.posts, one.precision) for one in sets if one.precision is not None]
    posts = sum(count for count, _ in known)
    return sum(count * precision for count, precision in known) / posts if posts else None


def why_stopped(folder: RunFolder, state: LoopState | None = None) -> str | None:
    """Return why no further round follows those that led to `state`, its finished ones; None: it goes on."""
    state = replay(folder)[0] if state is None else state
    return state.why_stop(RoundLimits.from_json(folder.recipe()), folder.environment().pool)


def missing_reviews(folder: RunFolder, state: LoopState | None = None) -> str | None:
    """Return what people have still to review before the run can go on, and where; None: nothing."""
    asks = (folder.recipe().get("human") or {}).get("budget")
    waiting = waiting_for(folder) if asks and why_stopped(folder, state) is None else None
    return str(waiting) if waiting is not None and waiting.open else None


def untaken_reviews(folder: RunFolder, state: LoopState) -> str | None:
    """Return in how many of people's decisions grown.jsonl is behind the reviews; None: in none.

    A run that is over brings it up to date whenever its command is given.
    """
    grown = folder.path / "grown.jsonl"
    if not is_begun(folder.path / LEDGER) or not grown.exists():
        return None
    used = {post_id: one.given.label for post_id, one in state.human.items()}
    decided = used | {one.post_id: one.label for one in unused_labels(folder, used)}
    written = dict(filter(None, map(human_label_from_json, read_jsonl(grown))))
    behind = len(dict(decided.items() ^ written.items()))
    if not behind:
        return None
    return (
        f"grown.jsonl lacks {behind:,} {'decision' if behind == 1 else 'decisions'} of people: the command"
        " that began the run, given again, takes them in"
    )


class RunStatus(NamedTuple):
    """Where a run stands, for one screen."""

    path: str
    recipe: str  # the recipe's file name, or "" when it was built in Python
    task: str
    finished: int  # finished rounds, round 0 included
    best_round: int | None  # the last kept round; None before round 0 is finished
    held: bool | None  # whether a process holds the run's lock now; None where that cannot be known
    last: RoundResult | None  # the last finished round; None without one
    stopped: str | None  # why no further round follows; None: the same command goes on
    waiting: str | None = None  # reviews that it waits for, in words; None: none
    untaken: str | None = None  # decisions that a run which is over has not taken in, in words; None: none
    # what classifier and agents together came to; None where the run decides otherwise, or where nobody asked
    # for it
    posterior: PosteriorFigures | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a record of JSON values."""
        typed = {"last": self.last, "posterior": self.posterior}
        return self._asdict() | {name: one.to_json() if one else None for name, one in typed.items()}


def run_status(folder: RunFolder) -> RunStatus:
    """Read where the run stands now."""
    folder.recipe()  # no run folder: said before anything else
    state, rounds = replay(folder)
    judged = JudgedPosts(folder, range(len(rounds)), find=False)
    return status_after(folder, state, rounds)._replace(posterior=gather_posterior(state, rounds, judged))


def status_after(folder: RunFolder, state: LoopState, rounds: Sequence[RoundResult]) -> RunStatus:
    """Return where the run stands after its finished rounds, which led to `state`; without the posterior."""
    environment = folder.environment()
    stopped = why_stopped(folder, state) if rounds else None
    return RunStatus(
        path=str(folder.path),
        recipe=environment.recipe,
        task=environment.task,
        finished=len(rounds),
        best_round=state.best_round if rounds else None,
        held=is_held(folder),
        last=rounds[-1] if rounds else None,
        stopped=stopped,
        waiting=missing_reviews(folder, state) if rounds else None,
        untaken=untaken_reviews(folder, state) if stopped else None,
    )


def is_held(folder: RunFolder) -> bool | None:
    """Return whether a process works on the run; None where no lock can be asked for.

    A shared lock is asked for and let go at once: it fails exactly when somebody writes.
    """
    try:
        check_regular(folder.path / ".lock")
        with (folder.path / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks, or a lock that we may not read
        return None
    return False

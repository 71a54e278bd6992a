"""What a run has come to, as plain figures: from the files of its folder alone, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from selftrain._util.types import Json
from selftrain.store.run_dir import RunFolder


class Score(NamedTuple):
    """Macro-F1 of one round's model; `test` is None without a test split."""

    validation: float
    test: float | None


class Summary(NamedTuple):
    """All finished rounds in a few figures.

    Attributes:
        labels_alone: Round 0.
        best: The last kept round, whose number is `best_round`.
        rounds: Finished rounds after round 0: `kept` and `rolled_back` of them.
        candidates, consistent, divergent: Posts, summed over those rounds; a post judged twice counts twice.
        candidate_precision: Share of right classifier labels among the candidates, before verification.
        pseudo_label_precision: Share of right labels among the pseudo-labels of grown.jsonl whose truth is
            known. None where no truth is known, as `candidate_precision` is.
        pseudo_label_exact: False for a run whose figures do not tell that share: then the precision is that
            of the consistent posts of kept rounds, a round whose truth is known in part counting with all.
        labelled, grown: Posts of the labelled set and of the grown dataset.
        seconds: Time spent in the rounds.
        simulated: Whether the agents' answers were drawn from the labels.
        human: Posts of the grown dataset that people labelled during the run.
    """

    labels_alone: Score
    best: Score
    best_round: int
    rounds: int
    kept: int
    rolled_back: int
    candidates: int
    consistent: int
    divergent: int
    candidate_precision: float | None
    pseudo_label_precision: float | None
    pseudo_label_exact: bool
    labelled: int
    grown: int
    seconds: float
    simulated: bool
    human: int = 0


def summarise(rounds: Sequence[Mapping[str, Any]]) -> Summary:
    """The figures of finished rounds, round 0 first (`RunFolder.finished_rounds`); at least one."""
    after = rounds[1:]
    kept = [figures for figures in after if figures["kept"]]
    best = kept[-1] if kept else rounds[0]
    pseudo = rounds[-1].get("pseudo_labels")
    return Summary(
        labels_alone=score(rounds[0]),
        best=score(best),
        best_round=int(best["round"]),
        rounds=len(after),
        kept=len(kept),
        rolled_back=len(after) - len(kept),
        candidates=_total(after, "candidates"),
        consistent=_total(after, "consistent"),
        divergent=_total(after, "divergent"),
        candidate_precision=_precision(after, "candidates"),
        pseudo_label_precision=pseudo["precision"] if pseudo else _precision(kept, "consistent"),
        pseudo_label_exact=bool(pseudo),
        labelled=int(rounds[0]["grown"]),
        grown=int(rounds[-1]["grown"]),
        seconds=sum(float(figures["seconds"]) for figures in rounds),
        simulated=any(figures["simulated"] for figures in rounds),
        human=int((rounds[-1].get("human") or {}).get("posts", 0)),
    )


def score(figures: Mapping[str, Any]) -> Score:
    """Macro-F1 of one round."""
    test = figures.get("test")
    return Score(float(figures["validation"]["macro_f1"]), None if test is None else float(test["macro_f1"]))


def _total(rounds: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(int(figures[name]["posts"]) for figures in rounds)


def _precision(rounds: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Mean of the rounds' precisions, each weighted by its posts."""
    known = [figures[name] for figures in rounds if figures[name]["precision"] is not None]
    posts = sum(int(one["posts"]) for one in known)
    return sum(one["posts"] * one["precision"] for one in known) / posts if posts else None


def why_stopped(folder: RunFolder) -> str | None:
    """Why no further round follows, as `loop.why_stop` would say it; None: the run goes on.

    Raises:
        RunStateError: The folder is damaged.
    """
    rounds, recipe = folder.finished_rounds(), folder.recipe()
    most, patience = int(recipe["rounds"]["max"]), int(recipe["rounds"]["patience"])
    rejections = next((i for i, figures in enumerate(reversed(rounds)) if figures["kept"]), 0)
    if len(rounds) > most:
        return f"all {most} rounds are done"
    if rejections >= patience:
        return f"{rejections} rounds in a row brought no improvement"
    budget = recipe["rounds"].get("budget")
    if budget is not None and sum(int(one["candidates"]["posts"]) for one in rounds) >= int(budget):
        return f"the budget of {budget} candidates is spent"
    if rounds and open_posts(folder, rounds) == 0:
        return "no pool post is left to choose from"
    return None


def missing_reviews(folder: RunFolder) -> str | None:
    """What people have still to review before the run can go on, and where; None: nothing.

    Raises:
        RunStateError: The folder is damaged.
        LedgerError: The ledger of reviews cannot be read.
    """
    from selftrain.review.reviewers import waiting_for

    if not (folder.recipe().get("human") or {}).get("budget") or why_stopped(folder) is not None:
        return None
    waiting = waiting_for(folder)
    return str(waiting) if waiting is not None and waiting.open else None


def open_posts(folder: RunFolder, rounds: Sequence[Mapping[str, Any]]) -> int:
    """How many pool posts may still be chosen: the ledger's rules, told over ids."""
    accepted, divergent, set_aside, human = set[str](), set[str](), set[str](), set[str]()
    for figures in rounds:
        verdicts = folder.verdicts(int(figures["round"]))
        human |= {row["id"] for row in folder.human(int(figures["round"]))}
        if not figures["kept"]:
            set_aside |= {verdict["post_id"] for verdict in verdicts}
            continue
        agreed = {verdict["post_id"] for verdict in verdicts if verdict["consistent"]}
        returned = set(figures.get("returned", ()))
        accepted = (accepted - returned) | agreed
        divergent = (divergent | returned | {verdict["post_id"] for verdict in verdicts}) - agreed
        set_aside = set()
    again = folder.recipe()["selection"]["again"]
    closed = accepted | set_aside | human | (set() if again else divergent)
    return int(folder.environment()["splits"]["pool"]) - len(closed)


class Standing(NamedTuple):
    """Where a run stands, for one screen.

    Attributes:
        path: The run folder.
        recipe: The recipe's file name, or "" when it was built in Python.
        task: The task's name.
        finished: Finished rounds, round 0 included.
        best_round: The last kept round; None before round 0 is finished.
        held: Whether a process holds the run's lock now; None where that cannot be told.
        last: The figures of the last finished round; None without one.
        stopped: Why no further round follows; None: the same command goes on.
        waiting: Reviews that it waits for, in words; None: none.
    """

    path: str
    recipe: str
    task: str
    finished: int
    best_round: int | None
    held: bool | None
    last: Json | None
    stopped: str | None
    waiting: str | None = None


def standing(folder: RunFolder) -> Standing:
    """Where the run stands now.

    Raises:
        RunStateError: No run folder, or a damaged one.
    """
    folder.recipe()  # no run folder: said before anything else
    environment, rounds = folder.environment(), folder.finished_rounds()
    return Standing(
        path=str(folder.path),
        recipe=str(environment.get("recipe") or ""),
        task=str(environment["identity"]["task"]),
        finished=len(rounds),
        best_round=folder.best_round() if rounds else None,
        held=is_held(folder),
        last=rounds[-1] if rounds else None,
        stopped=why_stopped(folder),
        waiting=missing_reviews(folder) if rounds else None,
    )


def is_held(folder: RunFolder) -> bool | None:
    """Whether a process works on the run; None on a system without POSIX locks.

    A shared lock is asked for and let go at once: it fails exactly when somebody writes.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        with (folder.path / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks, or a lock that we may not read
        return None
    return False

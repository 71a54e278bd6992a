"""The verdicts of a run as the page's browser reads them: an index of all, and what was said in chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agents.judgment import Judgment, State, Verdict
from selftrain._util.printable import printable
from selftrain._util.types import Json
from selftrain.data.run_posts import FoundPost, find_posts
from selftrain.store.run_dir import RunFolder
from selftrain.web.pictures import BUDGET, Pictures, embed
from selftrain.web.table import MOST_RECORDS, Control, TableData, cut_text, embed_table, fitting

SNIPPET = 90
LENGTHS = ((1200, 900), (500, 320), (240, 160), (120, 80))
"""Characters of a text and of a rationale: the first pair that the page has room for."""
UNFINISHED = "unfinished"


class Browser(NamedTuple):
    """The browser of verdicts.

    Attributes:
        table: Its data.
        without_text: Posts whose manifest is gone.
        rounds: Number and outcome of each round that has verdicts, newest first.
        truth_known: Whether the true class of any shown post is known.
    """

    table: TableData
    without_text: int
    rounds: Sequence[tuple[int, str]]
    truth_known: bool


def gather_verdicts(
    folder: RunFolder, outcomes: Mapping[int, str], classes: Sequence[str], *, budget: int = BUDGET
) -> Browser:
    """Read the verdicts of some rounds, newest round first, divergent ones before consistent ones.

    Args:
        folder: The run.
        outcomes: Number of each round to be shown -> "kept", "rolled back" or `UNFINISHED`.
        classes: The task's class names, the positive one first.
        budget: Characters of all pictures together.

    Raises:
        RunStateError: A damaged folder.
    """
    found = [
        (number, verdict)
        for number in sorted(outcomes, reverse=True)
        for verdict in sorted(folder.verdicts(number), key=lambda one: one.consistent)
    ]
    shown = found[:MOST_RECORDS]
    posts = find_posts(folder, {verdict.post_id for _, verdict in shown})
    pictures = embed((path for _, verdict in shown for path in _images(posts, verdict)), budget=budget)
    text, rationale = _lengths([verdict for _, verdict in shown], posts)
    writer = _Writer(classes, posts, pictures, text, rationale)
    records = [writer.record(verdict) for _, verdict in shown]
    index = writer.index(shown, outcomes)
    rounds = [(number, outcomes[number]) for number in dict.fromkeys(number for number, _ in shown)]
    truth_known = any(writer.truth(verdict.post_id) >= 0 for _, verdict in shown)
    controls = _controls(rounds, writer.class_names(), writer.agent_names(), truth_known=truth_known)
    return Browser(
        embed_table("verdicts", controls, index, records, pictures, total=len(found), cut=text),
        without_text=len({verdict.post_id for _, verdict in shown} - posts.keys()),
        rounds=rounds,
        truth_known=truth_known,
    )


def _controls(
    rounds: Sequence[tuple[int, str]], classes: Sequence[str], agents: Sequence[str], *, truth_known: bool
) -> list[Control]:
    numbered = [(number, f"{number}, {outcome}") for number, outcome in rounds]
    some_agent = [("", "no matter"), ("any", "any agent"), *enumerate(agents)]
    truths = [("", "no matter"), ("wrong", "classifier wrong"), ("right", "classifier right")]
    orders = [
        ("newest", "newest round first"), ("oldest", "oldest round first"), ("low", "least sure first"),
        ("high", "surest first"),
    ]  # fmt: skip
    return [
        Control("f-round", "Round", [("", "all"), *numbered]),
        Control("f-set", "Set", [("", "all"), (1, "consistent"), (0, "divergent")]),
        Control("f-class", "Classifier says", [("", "any class"), *enumerate(classes)]),
        Control("f-changed", "Changed its mind", some_agent),
        Control("f-failed", "Failed", some_agent),
        *([Control("f-truth", "Truth", truths)] if truth_known else []),
        Control("f-sort", "Sort", orders),
    ]


class _Writer:
    """Verdicts to records and columns; names of classes and agents become numbers as they turn up."""

    def __init__(
        self,
        classes: Sequence[str],
        posts: Mapping[str, FoundPost],
        pictures: Pictures,
        text: int,
        rationale: int,
    ) -> None:
        self._classes = {name: number for number, name in enumerate(classes)}
        self._agents: dict[str, int] = {}
        self._posts, self._pictures = posts, pictures
        self._text, self._rationale = text, rationale

    def record(self, verdict: Verdict) -> list[Any]:
        """Return what the page tells of a verdict.

        It is [text or None, [[picture number or -1, name]], judgments, remark], and a judgment [agent, step,
        state, class or -1, probability, rationale].
        """
        post = self._posts.get(verdict.post_id)
        said = [
            [
                self._agent(one.agent), one.step, printable(str(one.state)), self._class(one.label),
                one.probability, cut_text(one.rationale, self._rationale),
            ]
            for one in verdict.judgments
        ]  # fmt: skip
        if post is None:
            return [None, [], said, ""]
        images = [
            self._pictures.shown(path, name) for path, name in zip(post.images, post.names, strict=True)
        ]
        return [cut_text(post.text, self._text), images, said, printable(post.reason)]

    def index(self, shown: Sequence[tuple[int, Verdict]], outcomes: Mapping[int, str]) -> Json:
        """Return columns, one entry a verdict, and the names that they count."""
        verdicts = [verdict for _, verdict in shown]
        truths = [self.truth(verdict.post_id) for verdict in verdicts]
        labels = [self._class(verdict.classifier_label) for verdict in verdicts]
        return {
            "rounds": {str(number): outcome for number, outcome in outcomes.items()},
            "round": [number for number, _ in shown],
            "id": [printable(verdict.post_id) for verdict in verdicts],
            "snippet": [self._snippet(verdict.post_id) for verdict in verdicts],
            "consistent": [int(verdict.consistent) for verdict in verdicts],
            "label": labels,
            "probability": [round(verdict.classifier_probability, 4) for verdict in verdicts],
            "changed": [self._flags(verdict, _changed) for verdict in verdicts],
            "failed": [self._flags(verdict, _failed) for verdict in verdicts],
            "truth": truths,
            "classes": self.class_names(),
            "agents": self.agent_names(),
        }

    def class_names(self) -> list[str]:
        """Return the classes in the order in which records count them."""
        return [printable(name) for name in self._classes]

    def agent_names(self) -> list[str]:
        """Return the agents in the order in which records count them."""
        return [printable(name) for name in self._agents]

    def truth(self, post_id: str) -> int:
        """Return the number of a post's true class, -1 where it is not known."""
        post = self._posts.get(post_id)
        return -1 if post is None or post.label is None else self._classes.get(post.label, -1)

    def _snippet(self, post_id: str) -> str:
        post = self._posts.get(post_id)
        return "" if post is None else cut_text(" ".join(post.text[: 4 * SNIPPET].split()), SNIPPET)

    def _flags(self, verdict: Verdict, which: Callable[[Sequence[Judgment]], bool]) -> int:
        """Return a number whose bit i is set where agent number i did so."""
        return sum(1 << self._agent(role) for role, steps in verdict.by_agent().items() if which(steps))

    def _agent(self, name: str) -> int:
        return self._agents.setdefault(name, len(self._agents))

    def _class(self, name: str | None) -> int:
        return -1 if name is None else self._classes.setdefault(name, len(self._classes))


def _changed(steps: Sequence[Judgment]) -> bool:
    return steps[0].label != steps[-1].label


def _failed(steps: Sequence[Judgment]) -> bool:
    return any(step.state is State.FAILED for step in steps)


def _images(posts: Mapping[str, FoundPost], verdict: Verdict) -> tuple[Path, ...]:
    post = posts.get(verdict.post_id)
    return () if post is None else post.images


def _lengths(verdicts: Sequence[Verdict], posts: Mapping[str, FoundPost]) -> tuple[int, ...]:
    """Return the longest texts and rationales that the page has room for."""
    texts = [len(post.text) for v in verdicts if (post := posts.get(v.post_id)) is not None]
    rationales = [len(one.rationale) for v in verdicts for one in v.judgments]
    return fitting(LENGTHS, texts, rationales)

"""The verdicts of a run as the page's browser reads them: an index of all, and what was said in chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from agents.judgment import Verdict
from selftrain._util.printable import printable
from selftrain._util.types import Json
from selftrain.data.run_posts import FoundPost
from selftrain.report.post_history import JudgedPosts, any_failed, changed_mind
from selftrain.web.pictures import Pictures, embed
from selftrain.web.table import MOST_RECORDS, Control, TableData, cut_text, embed_table, fitting

SNIPPET = 90
LENGTHS = ((1200, 900), (500, 320), (240, 160), (120, 80))
"""Characters of a text and of a rationale: the first pair that the page has room for."""
UNFINISHED = "unfinished"
SURE = [
    ("0 0.6", "below 0.60"), ("0.6 0.8", "0.60 to 0.80"), ("0.8 0.95", "0.80 to 0.95"),
    ("0.95 2", "0.95 and above"),
]  # fmt: skip
"""Ranges of a posterior, as verdicts.js reads them, and what they are called."""


class Browser(NamedTuple):
    """The browser of verdicts."""

    table: TableData  # its data
    without_text: int  # posts whose manifest is gone
    rounds: Sequence[tuple[int, str]]  # number and outcome of each round that has verdicts, newest first
    truth_known: bool  # whether the true class of any shown post is known


class _Shown(NamedTuple):
    """A verdict in the page: its round, and its post as far as a manifest has it."""

    round: int
    verdict: Verdict
    post: FoundPost | None

    @property
    def probability(self) -> float:
        """Of the verdict's label."""
        posterior = self.verdict.posterior
        return self.verdict.classifier_probability if posterior is None else posterior.probability


def gather_verdicts(judged: JudgedPosts, outcomes: Mapping[int, str], classes: Sequence[str]) -> Browser:
    """Lay out the verdicts of some rounds, newest round first, divergent ones before consistent ones.

    `outcomes` has each round's "kept", "rolled back" or `UNFINISHED`, `classes` the order of the page.
    """
    found = [
        (one.number, verdict)
        for one in reversed(judged.rounds)
        for verdict in sorted(one.verdicts, key=lambda one: one.consistent)
    ]
    shown = [_Shown(n, verdict, judged.posts.get(verdict.post_id)) for n, verdict in found[:MOST_RECORDS]]
    pictures = embed(path for one in shown if one.post for path in one.post.images)
    texts = [len(one.post.text) for one in shown if one.post]
    judgments = [said for one in shown for said in one.verdict.judgments]
    rationales = [len(words) for said in judgments for words in (said.reasons, said.reasoning)]
    lengths = fitting(LENGTHS, texts, rationales)
    names = _Names(classes)
    records = [_record(one, names, pictures, lengths, judged) for one in shown]
    index = _index(shown, names, outcomes)
    rounds = [(number, outcomes[number]) for number in dict.fromkeys(one.round for one in shown)]
    truth_known = any(names.truth(one) >= 0 for one in shown)
    weighed = any(one.verdict.posterior for one in shown)
    controls = _controls(rounds, names, truth_known=truth_known, weighed=weighed)
    return Browser(
        embed_table("verdicts", controls, index, records, pictures, total=len(found), cut=lengths[0]),
        without_text=len({one.verdict.post_id for one in shown if one.post is None}),
        rounds=rounds,
        truth_known=truth_known,
    )


class _Names:
    """The classes and agents by number, which they get as they turn up."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = {name: number for number, name in enumerate(classes)}
        self.agents: dict[str, int] = {}

    def label(self, name: str | None) -> int:
        """Return the number of a class; -1 for none."""
        return -1 if name is None else self.classes.setdefault(name, len(self.classes))

    def agent(self, name: str) -> int:
        """Return the number of an agent."""
        return self.agents.setdefault(name, len(self.agents))

    def truth(self, one: _Shown) -> int:
        """Return the number of a post's true class; -1 where it is not known."""
        return -1 if one.post is None or one.post.label is None else self.classes.get(one.post.label, -1)


def _controls(
    rounds: Sequence[tuple[int, str]], names: _Names, *, truth_known: bool, weighed: bool
) -> list[Control]:
    """Return the controls; `weighed`: where some verdict has a posterior."""
    classes = [("", "any class"), *enumerate(map(printable, names.classes))]
    some_agent = [("", "no matter"), ("any", "any agent"), *enumerate(map(printable, names.agents))]
    who = "posterior" if weighed else "classifier"
    truths = [("", "no matter"), ("wrong", f"{who} wrong"), ("right", f"{who} right")]
    sure = [("", "any"), ("overruled", "against the classifier"), *SURE]
    by_posterior = [("q-low", "posterior, least sure first"), ("q-high", "posterior, surest first")]
    orders = [
        ("newest", "newest round first"), ("oldest", "oldest round first"),
        *(by_posterior if weighed else []),
        ("low", "classifier, least sure first"), ("high", "classifier, surest first"),
    ]  # fmt: skip
    return [
        Control("f-round", "Round", [("", "all"), *((n, f"{n}, {outcome}") for n, outcome in rounds)]),
        Control("f-set", "Set", [("", "all"), (1, "consistent"), (0, "divergent")]),
        *([Control("f-decided", "Posterior says", classes), Control("f-sure", "Posterior", sure)]
          if weighed else []),
        Control("f-class", "Classifier says", classes),
        Control("f-changed", "Changed its mind", some_agent),
        Control("f-failed", "Failed", some_agent),
        *([Control("f-truth", "Truth", truths)] if truth_known else []),
        Control("f-sort", "Sort", orders),
    ]  # fmt: skip


def _record(
    one: _Shown, names: _Names, pictures: Pictures, lengths: Sequence[int], judged: JudgedPosts
) -> list[Any]:
    """Return [text or None, [[picture number or -1, name]], judgments, remark, posterior or None].

    A judgment is [agent, step, state, class or -1, probability, reasons, thoughts before them].
    """
    text, rationale = lengths
    said = [
        [
            names.agent(each.agent), each.step, printable(str(each.state)), names.label(each.label),
            each.probability, cut_text(each.reasons, rationale), cut_text(each.reasoning, rationale),
        ]
        for each in one.verdict.judgments
    ]  # fmt: skip
    posterior = _posterior(one.verdict, names, judged)
    if (post := one.post) is None:
        return [None, [], said, "", posterior]
    images = [pictures.shown(path, name) for path, name in zip(post.images, post.names, strict=True)]
    return [cut_text(post.text, text), images, said, printable(post.reason), posterior]


def _posterior(verdict: Verdict, names: _Names, judged: JudgedPosts) -> list[Any] | None:
    """Return [threshold, [[class, q]], [[party, log-odds]], [[round, class, q]]]; a post has a q a round."""
    found = verdict.posterior
    if found is None:
        return None
    probs = [[names.label(name), round(q, 3)] for name, q in found.probs.items()]
    log_odds = [[printable(party), round(added, 2)] for party, added in found.log_odds.items()]
    history = [
        [number, names.label(each.label), round(each.posterior.probability, 3)]
        for number, each in judged.histories[verdict.post_id]
        if each.posterior is not None
    ]
    return [found.threshold, probs, log_odds, history]


def _index(shown: Sequence[_Shown], names: _Names, outcomes: Mapping[int, str]) -> Json:
    """Return columns, one entry a verdict, and the names that they count.

    `decided` and `sure` are the verdict's label and its probability: the posterior's, or the classifier's.
    Of `changed` and `failed` bit i is set where agent number i did so.
    """
    verdicts = [one.verdict for one in shown]
    texts = [one.post.text if one.post else "" for one in shown]
    by_agent = [{names.agent(role): said for role, said in one.by_agent().items()} for one in verdicts]
    columns: Json = {
        "rounds": {str(number): outcome for number, outcome in outcomes.items()},
        "round": [one.round for one in shown],
        "id": [printable(one.post_id) for one in verdicts],
        "snippet": [cut_text(" ".join(text[: 4 * SNIPPET].split()), SNIPPET) for text in texts],
        "consistent": [int(one.consistent) for one in verdicts],
        "label": [names.label(one.classifier_label) for one in verdicts],
        "probability": [round(one.classifier_probability, 4) for one in verdicts],
        "decided": [names.label(one.label) for one in verdicts],
        "sure": [round(one.probability, 4) for one in shown],
        "changed": [sum(1 << i for i, said in one.items() if changed_mind(said)) for one in by_agent],
        "failed": [sum(1 << i for i, said in one.items() if any_failed(said)) for one in by_agent],
        "truth": [names.truth(one) for one in shown],
    }
    return columns | {  # the names have all turned up by now
        "classes": list(map(printable, names.classes)),
        "agents": list(map(printable, names.agents)),
    }

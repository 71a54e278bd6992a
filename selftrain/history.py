"""From the run folder back to the state of the loop, and from that state to the grown dataset."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from selftrain.corpus import Corpus
from selftrain.errors import RunStateError
from selftrain.ledger import Human, Ledger, Pseudo
from selftrain.rounds import Round
from selftrain.run.folder import RunFolder


def replay(folder: RunFolder, corpus: Corpus) -> tuple[Ledger, list[Round]]:
    """The ledger after the finished rounds of `folder`, and those rounds.

    Raises:
        RunStateError: A record that is damaged, or that names a post that the pool does not have.
    """
    try:
        return _replay(folder, corpus)
    except (KeyError, TypeError) as error:
        raise RunStateError(
            f"{folder.path} has a round whose metrics.json or verdicts.jsonl is incomplete ({error!r}): the"
            " folder is damaged"
        ) from error


def _replay(folder: RunFolder, corpus: Corpus) -> tuple[Ledger, list[Round]]:
    position_of = pool_positions(corpus)
    values = {corpus.positive: 1, corpus.negative: 0}
    ledger, rounds = Ledger(), []
    for figures in folder.finished_rounds():
        if figures["round"] and not (folder.round_path(figures["round"]) / "verdicts.jsonl").exists():
            raise RunStateError(f"{folder.round_path(figures['round'])} has no verdicts.jsonl: it is damaged")
        score = float(figures["validation"]["macro_f1"])
        decisions = folder.human(figures["round"])
        ledger = ledger.decided(placed(decisions, position_of, folder), values)
        verdicts = [
            (_position(v["post_id"], position_of, folder), v) for v in folder.verdicts(figures["round"])
        ]
        if figures["kept"]:
            returned = [_position(i, position_of, folder) for i in figures.get("returned", [])]
            ledger = ledger.keep(ledger.merge(verdicts, values, returned), score)
        else:
            ledger = ledger.roll_back(position for position, _ in verdicts)
        rounds.append(Round(figures))
    return ledger, rounds


def pool_positions(corpus: Corpus) -> dict[str, int]:
    """Post id -> position, of the pool."""
    return {corpus.posts[int(p)].id: int(p) for p in corpus.pool}


def placed(
    decisions: Iterable[Mapping[str, Any]], position_of: Mapping[str, int], folder: RunFolder
) -> list[tuple[int, Mapping[str, Any]]]:
    """Rows of human.jsonl with the positions of their posts.

    Raises:
        RunStateError: A post that the pool does not have.
    """
    return [(_position(row["id"], position_of, folder, "decision"), row) for row in decisions]


def _position(post_id: str, position_of: Mapping[str, int], folder: RunFolder, what: str = "verdict") -> int:
    if post_id not in position_of:
        raise RunStateError(
            f"{folder.path} has a {what} on {post_id!r}, which is not in the pool: the folder is damaged, or"
            " the posts are not those that the run began with"
        )
    return position_of[post_id]


def grown_rows(corpus: Corpus, ledger: Ledger, root: Path) -> Iterator[dict[str, Any]]:
    """The grown dataset: labelled posts, then people's labels and accepted posts by round, with provenance.

    Args:
        corpus: The posts.
        ledger: What was accepted.
        root: Image paths are written relative to this folder.
    """
    for position in corpus.labelled:
        row = _post_row(corpus, int(position), root)
        yield row | {"label": corpus.posts[position].label, "provenance": {"source": "label"}}
    for position, human in sorted(ledger.human.items(), key=lambda item: (item[1].round, item[0])):
        row = _post_row(corpus, position, root)
        yield row | {"label": corpus.class_name(human.value), "provenance": _given(human)}
    for position, pseudo in sorted(ledger.accepted.items(), key=lambda item: (item[1].round, item[0])):
        row = _post_row(corpus, position, root)
        yield row | {"label": corpus.class_name(pseudo.value), "provenance": _provenance(pseudo)}


def _post_row(corpus: Corpus, position: int, root: Path) -> dict[str, Any]:
    post = corpus.posts[position]
    images = [os.path.relpath(image, root) for image in post.images]
    row: dict[str, Any] = {"id": post.id, "text": post.text, "images": images}
    if post.process:
        row["process"] = dict(post.process)
    return row


def _given(human: Human) -> dict[str, Any]:
    names = ("reviewers", "contested", "batch", "inclusion", "machine_label")
    return {"source": "human", "round": human.round, **{name: human.record[name] for name in names}}


def _provenance(pseudo: Pseudo) -> dict[str, Any]:
    verdict = pseudo.verdict
    last = {judgment["agent"]: judgment for judgment in verdict["judgments"]}
    return {
        "source": "pseudo-label",
        "round": pseudo.round,
        "classifier_probability": verdict["classifier_probability"],
        "agents": {
            role: {"probability": j["probability"], "step": j["step"], "source": j["source"]}
            for role, j in last.items()
        },
        # without agents the one judgment is the classifier's own: it is named once
        "agreed": list(
            dict.fromkeys(
                ["classifier", *(r for r, j in last.items() if j["label"] == verdict["classifier_label"])]
            )
        ),
    }

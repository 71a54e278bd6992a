"""From the run folder back to the state of the loop, and from that state to the grown dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selftrain.corpus import Corpus
from selftrain.errors import RunStateError
from selftrain.ledger import Ledger, Pseudo
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
    position_of = {corpus.posts[int(p)].id: int(p) for p in corpus.pool}
    values = {corpus.positive: 1, corpus.negative: 0}
    ledger, rounds = Ledger(), []
    for figures in folder.finished_rounds():
        if figures["round"] and not (folder.round_path(figures["round"]) / "verdicts.jsonl").exists():
            raise RunStateError(f"{folder.round_path(figures['round'])} has no verdicts.jsonl: it is damaged")
        score = float(figures["validation"]["macro_f1"])
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


def _position(post_id: str, position_of: Mapping[str, int], folder: RunFolder) -> int:
    if post_id not in position_of:
        raise RunStateError(
            f"{folder.path} has a verdict on {post_id!r}, which is not in the pool: the folder is damaged, or"
            " the posts are not those that the run began with"
        )
    return position_of[post_id]


def grown_rows(corpus: Corpus, ledger: Ledger, root: Path) -> Iterator[dict[str, Any]]:
    """The grown dataset: labelled posts, then accepted ones by round, each with its provenance.

    Args:
        corpus: The posts.
        ledger: What was accepted.
        root: Image paths are written relative to this folder.
    """
    for position in corpus.labelled:
        row = _post_row(corpus, int(position), root)
        yield row | {"label": corpus.posts[position].label, "provenance": {"source": "label"}}
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

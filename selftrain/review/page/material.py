"""What a reviewer sees of a post: words and pictures, and, once they have answered, what machines gave."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from agents.ask.annotator import Annotation
from backbones.images import open_image
from selftrain._util.printable import printable, printable_lines
from selftrain._util.types import Json
from selftrain.data.run_posts import FoundPost, find_posts
from selftrain.data.task import load_task
from selftrain.errors import TaskError
from selftrain.review.criticism import CRITICISMS, LabelCriticism, read_criticisms
from selftrain.review.labelling import annotations_of
from selftrain.rounds import replay
from selftrain.state import LastVerdict
from selftrain.store.run_dir import RunFolder

SIDE = 1600
"""Pixels of the longer side of a picture, at most."""
QUALITY = 85


class Policy(NamedTuple):
    """The task in words."""

    name: str
    text: str | None  # the policy; None when the task file is gone or has changed its classes
    meanings: Mapping[str, str]  # class name -> one line; empty as well then


class Material:
    """Posts and verdicts of a run, read when first asked for and kept.

    Raises:
        RunStateError: No run folder, or a damaged one.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._posts: dict[str, FoundPost | None] = {}
        self._last: Mapping[str, LastVerdict] = {}
        self._criticisms: dict[str, LabelCriticism] = {}
        self._annotations: dict[str, Annotation] = {}
        self._rounds = -1

    def load(self, post_ids: Iterable[str]) -> None:
        """Read what is not known yet; every manifest is read once however many posts are asked for.

        Raises:
            RunStateError: A damaged folder.
        """
        wanted = [post_id for post_id in post_ids if post_id not in self._posts]
        if not wanted:
            return
        found = find_posts(self._folder, wanted)
        self._posts |= {post_id: found.get(post_id) for post_id in wanted}
        if (rounds := self._folder.finished()) != self._rounds:
            self._last = replay(self._folder)[0].last_verdicts
            self._annotations = annotations_of(self._folder)
            criticisms = read_criticisms(self._folder.path / CRITICISMS)
            self._criticisms = {one.post_id: one for one in criticisms}  # the last batch counts
            self._rounds = rounds

    def unknown(self, post_ids: Iterable[str]) -> list[str]:
        """Return posts that neither a manifest nor a verdict of the run knows."""
        asked = list(post_ids)
        self.load(asked)
        return [one for one in asked if self._posts[one] is None and one not in self._last]

    def shown(self, post_id: str) -> Json:
        """Return the post itself, as the page takes it: text None where the manifest is gone."""
        self.load([post_id])
        post = self._posts[post_id]
        if post is None:
            return {"text": None, "images": [], "remark": ""}
        return {
            "text": printable_lines(post.text),
            "images": [printable(name) for name in post.names],
            "remark": printable(_without_paths(post.reason, post)),
        }

    def opinions(self, post_id: str) -> list[Json]:
        """Return what machines gave: classifier and agents, or the annotator, and then a criticizer.

        Each has `who` and `steps`, oldest first: `state`, `label` (None unless a class was named),
        `probability` and `words`. Empty where nothing in the folder is about the post.
        """
        self.load([post_id])
        parties: dict[str, list[Json]] = {}
        last, annotation = self._last.get(post_id), self._annotations.get(post_id)
        if last is not None:
            verdict = last.verdict
            label, probability = verdict.classifier_label, verdict.classifier_probability
            parties["classifier"] = [_step("label", label, probability, "")]
            for role, judgments in verdict.by_agent().items():
                parties[role] = [_step(str(j.state), j.label, j.probability, j.rationale) for j in judgments]
        elif annotation is not None:
            parties["annotator"] = [
                _step("label", annotation.label, annotation.probability, annotation.rationale)
            ]
        criticism = self._criticisms.get(post_id)
        if criticism is not None and parties:
            # a criticizer names no class: it estimates how likely the machine's is wrong, and why
            error = criticism.error
            doubt = "no estimate" if error is None else f"{error:.0%} likely wrong"
            words = criticism.rationale or criticism.fault
            parties["criticizer"] = [_step(f"{criticism.label}: {doubt}", None, None, words)]
        return [{"who": printable(who), "steps": steps} for who, steps in parties.items()]

    def picture(self, post_id: str, index: int) -> bytes | None:
        """Return a picture of a post as WebP, at most `SIDE` pixels a side; None: there is no such picture.

        Raises:
            ImageError: The file cannot be decoded, or may not be.
        """
        self.load([post_id])
        post = self._posts[post_id]
        if post is None or not 0 <= index < len(post.images):
            return None
        image = open_image(post.images[index], target_size=SIDE)
        image.thumbnail((SIDE, SIDE))
        written = io.BytesIO()
        image.save(written, format="WEBP", quality=QUALITY, method=2)  # of the file's other contents, nothing
        return written.getvalue()

    def without_paths(self, reason: str, post_id: str) -> str:
        """Return a reason with the post's files as its manifest names them, not where they lie."""
        post = self._posts.get(post_id)
        return printable(reason if post is None else _without_paths(reason, post))


def policy_of(folder: RunFolder, classes: Iterable[str]) -> Policy:
    """Read the task's text from the file that the run's recipe names, if it still describes these classes.

    Raises:
        RunStateError: No run folder, or a damaged one.
    """
    name = folder.environment().task
    path = folder.recipe().get("data", {}).get("task")
    try:
        task = None if path is None else load_task(Path(path))
    except TaskError:
        task = None
    if task is None or set(task.names) != set(classes):
        return Policy(name, None, {})
    return Policy(task.name, task.policy, {one.name: one.meaning for one in task.classes})


def _step(state: str, label: str | None, probability: float | None, words: str) -> Json:
    return {
        "state": printable(state), "label": label, "probability": probability,
        "words": printable_lines(words),
    }  # fmt: skip


def _without_paths(reason: str, post: FoundPost) -> str:
    for path, name in zip(post.images, post.names, strict=True):
        reason = reason.replace(str(path), name)
    return reason

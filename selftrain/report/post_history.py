"""What a run's rounds said of its posts: all of it, of one kind, or of one post."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import Literal, NamedTuple

from agents.judgment import Judgment, State, Verdict, opinions
from selftrain._util.types import Json
from selftrain.data.run_posts import FoundPost, find_posts
from selftrain.errors import RunStateError
from selftrain.rounds import RoundResult, finished_rounds
from selftrain.store.run_dir import RunFolder


class JudgedRound(NamedTuple):
    """What one round said: verdicts on its candidates, and new ones on posts of earlier rounds."""

    number: int
    verdicts: Sequence[Verdict]
    revised: Sequence[Verdict]


class JudgedPosts:
    """All that was judged in some rounds of a run, read once; round 0 has judged nothing.

    `posts` are those that a manifest of the run has, by id; where `find` is false none is looked for, and no
    truth is known.
    """

    def __init__(self, folder: RunFolder, numbers: Iterable[int], *, find: bool = True) -> None:
        self.rounds = [JudgedRound(n, folder.verdicts(n), folder.revised(n)) for n in numbers]
        wanted: Collection[str] = {one.post_id for each in self.rounds for one in each.verdicts}
        self.posts: Mapping[str, FoundPost] = find_posts(folder, wanted) if find and wanted else {}

    @cached_property
    def truth(self) -> dict[str, str]:
        """Post id -> its class by the manifest, which the run did not see; without posts of unknown class."""
        return {post_id: one.label for post_id, one in self.posts.items() if one.label is not None}

    @cached_property
    def histories(self) -> dict[str, list[tuple[int, Verdict]]]:
        """Post id -> (round, verdict) of every verdict that it ever got, in their order."""
        found: dict[str, list[tuple[int, Verdict]]] = {}
        for one in self.rounds:
            for verdict in (*one.verdicts, *one.revised):
                found.setdefault(verdict.post_id, []).append((one.number, verdict))
        return found


class Chapter(NamedTuple):
    """One round in which a post was a candidate; the verdicts of a round that was not kept did not count."""

    round: int
    kept: bool
    verdict: Verdict


class PostHistory(NamedTuple):
    """What became of one post."""

    post_id: str
    text: str | None  # none when the run's manifests are not there any more, or changed
    images: tuple[str, ...]  # paths relative to the manifest
    remark: str  # why its row is not what it was any more; else empty
    chapters: tuple[Chapter, ...]  # one a round, oldest first; at least one

    def to_json(self) -> Iterator[Json]:
        """Yield one record a chapter."""
        for chapter in self.chapters:
            yield {
                "id": self.post_id, "text": self.text, "images": list(self.images), "remark": self.remark,
                "round": chapter.round, "kept": chapter.kept, "verdict": chapter.verdict.to_json(),
            }  # fmt: skip


def load(folder: RunFolder, post_id: str, number: int | None = None) -> PostHistory:
    """Read what became of a post that was a candidate in all finished rounds, or in one of them."""
    chapters, seen = [], dict[str, None]()
    for one in told_chapters(folder, number):
        seen[one.verdict.post_id] = None
        if one.verdict.post_id == post_id:
            chapters.append(one)
    if not chapters:
        raise RunStateError(_unknown(folder, post_id, number, list(seen)))
    found = find_posts(folder, [post_id]).get(post_id)
    text, images, remark = (None, (), "") if found is None else (found.text, found.names, found.reason)
    return PostHistory(post_id, text, images, remark, tuple(chapters))


def select_rounds(folder: RunFolder, number: int | None) -> list[RoundResult]:
    """Return all finished rounds, or one."""
    folder.recipe()
    rounds = finished_rounds(folder)
    if number is None:
        return rounds
    if not 0 <= number < len(rounds):
        finished = f"rounds 0 to {len(rounds) - 1} are" if rounds else "none is"
        raise RunStateError(f"{folder.path} has no finished round {number}: {finished}")
    return [rounds[number]]


def told_chapters(folder: RunFolder, number: int | None) -> Iterator[Chapter]:
    """Yield the verdicts of all finished rounds or of one, in the order of verification."""
    for one in select_rounds(folder, number):
        for verdict in folder.verdicts(one.number):
            yield Chapter(one.number, one.kept, verdict)


Kind = Literal["disagreements", "failed", "changed"]


def is_of_kind(verdict: Verdict, kind: Kind) -> bool:
    """Return whether a verdict is one of these.

    "disagreements": two parties' last words name different classes (an abstention names none); "failed": some
    call failed; "changed": an agent's last word is not its first.
    """
    steps = verdict.by_agent().values()
    if kind != "disagreements":
        return any(map(any_failed if kind == "failed" else changed_mind, steps))
    named = {judgments[-1].label for judgments in steps} - {None}
    return len(named | {verdict.classifier_label}) > 1


def changed_mind(judgments: Sequence[Judgment]) -> bool:
    """Return whether an agent's last label is not its first; its judgments are in their order."""
    own = opinions(judgments)
    return own[0].label != own[-1].label


def any_failed(judgments: Sequence[Judgment]) -> bool:
    """Return whether one of them failed."""
    return any(judgment.state is State.FAILED for judgment in judgments)


def _unknown(folder: RunFolder, post_id: str, number: int | None, seen: list[str]) -> str:
    where = f"{folder.path}" if number is None else f"round {number} of {folder.path}"
    if not seen:
        return f"no post was verified in {where} yet, {post_id!r} neither: rounds from 1 on verify candidates"
    message = f"post {post_id!r} was never a candidate in {where}; {len(seen):,} posts were. "
    close = get_close_matches(post_id, seen, n=3)
    if close:
        message += f"Did you mean {', '.join(map(repr, close))}? "
    return f"{message}`selftrain show {folder.path} --round N` lists those of a round"

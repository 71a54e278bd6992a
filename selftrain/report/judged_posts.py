"""The verdicts of a run, round by round, and the posts that they are about."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from agents.judgment import Verdict
from selftrain.data.run_posts import FoundPost, find_posts
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

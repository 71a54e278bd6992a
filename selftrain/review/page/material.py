"""What a reviewer sees of a post: words and pictures, and, once they have answered, what machines gave."""

from __future__ import annotations

from collections.abc import Iterable

from selftrain._util.printable import printable, printable_lines
from selftrain._util.types import Json
from selftrain.data.run_posts import FoundPost, find_posts
from selftrain.review.opinions import Opinion, Opinions
from selftrain.store.run_dir import RunFolder
from selftrain.web.pictures import as_webp

SIDE, QUALITY = 1600, 85
"""Pixels of the longer side of a picture, at most, and its WebP quality."""


class Material:
    """Posts and verdicts of a run, read when first asked for and kept.

    Raises:
        RunStateError: No run folder, or a damaged one; as every method that takes a post.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._posts: dict[str, FoundPost | None] = {}
        self._opinions = Opinions(folder)
        self._rounds = folder.finished()

    def load(self, post_ids: Iterable[str]) -> None:
        """Read what is not known yet; every manifest is read once however many posts are asked for."""
        wanted = [post_id for post_id in post_ids if post_id not in self._posts]
        if not wanted:
            return
        found = find_posts(self._folder, wanted)
        self._posts |= {post_id: found.get(post_id) for post_id in wanted}
        if (rounds := self._folder.finished()) != self._rounds:
            self._opinions, self._rounds = Opinions(self._folder), rounds

    def unknown(self, post_ids: Iterable[str]) -> list[str]:
        """Return posts that neither a manifest nor a verdict of the run knows."""
        asked = list(post_ids)
        self.load(asked)
        return [one for one in asked if self._posts[one] is None and one not in self._opinions]

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
        """Return what machines gave, as the page takes it; see `Opinions.of`."""
        self.load([post_id])
        return [_record(one) for one in self._opinions.of(post_id)]

    def picture(self, post_id: str, index: int) -> bytes | None:
        """Return a picture of a post as WebP, at most `SIDE` pixels a side; None: there is no such picture.

        Raises:
            ImageError: The file cannot be decoded, or may not be.
        """
        self.load([post_id])
        post = self._posts[post_id]
        if post is None or not 0 <= index < len(post.images):
            return None
        return as_webp(post.images[index], SIDE, QUALITY)

    def without_paths(self, reason: str, post_id: str) -> str:
        """Return a reason with the post's files as its manifest names them, not where they lie."""
        post = self._posts.get(post_id)
        return printable(reason if post is None else _without_paths(reason, post))


def _record(opinion: Opinion) -> Json:
    steps = [
        {**one._asdict(), "state": printable(one.state), "words": printable_lines(one.words)}
        for one in opinion.steps
    ]
    log_odds = [[printable(party), added] for party, added in opinion.log_odds.items()]
    return {"who": printable(opinion.who), "steps": steps, "log_odds": log_odds}


def _without_paths(reason: str, post: FoundPost) -> str:
    for path, name in zip(post.images, post.names, strict=True):
        reason = reason.replace(str(path), name)
    return reason

"""A recipe's prompts as a model would see them, for one post; nothing is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

from agents.ask.judge import VLMAgent
from agents.ask.prepare import Opener, prepare_post
from agents.ask.protocols import all_queries
from agents.client.base import ChatRequest, Picture
from agents.judgment import Judgment, PostLike, State
from selftrain.config import Recipe
from selftrain.data.manifest import describe, read_manifest
from selftrain.data.task import Task
from selftrain.errors import ManifestError


class Preview(NamedTuple):
    """One prompt: the file that words its question, and the whole request."""

    template: str
    request: ChatRequest

    def lines(self) -> Iterator[str]:
        """Yield the turns, one after the other; pictures by their size."""
        for message in self.request.messages:
            yield f"--- {message.role} ---"
            for part in message.parts:
                if isinstance(part, Picture):
                    yield f"[picture: {part.media_type}, {len(part.data):,} bytes, sha256 {part.source[:12]}]"
                else:
                    yield from part.split("\n")


def previews(
    recipe: Recipe, task: Task, agent: VLMAgent, opener: Opener, post_id: str | None = None
) -> list[Preview]:
    """Return every prompt that the recipe's protocol can send about a post, by default the manifest's first.

    Stand-ins take the place of what other agents and the classifier will have said, and labelled examples
    are left out: they are drawn when a run begins.

    Raises:
        ManifestError: The manifest or a picture cannot be read, or no post has that id.
    """
    post, section = _find(recipe, task, post_id), recipe.vlm
    words = "(here stands the rationale of this agent)"
    said = Judgment("reviewer", 0, State.LABEL, task.positive, None, words, "preview")
    first, review = all_queries(agent.protocol, said, task.numbered[0])
    prepared = asyncio.run(prepare_post(post, opener, side=section.image_side, most=section.max_images))
    if prepared.fault:
        raise ManifestError(f"post {post.id!r} cannot be shown: {prepared.fault}")
    return [Preview(one.template, agent.prompt(prepared, one).request()) for one in (*first, *review)]


def _find(recipe: Recipe, task: Task, post_id: str | None) -> PostLike:
    files = [file for file in (recipe.data.manifest, recipe.data.pool) if file is not None]
    faults = list[str]()
    for file in files:
        report = read_manifest(
            file, task, max_pixels=recipe.data.max_image_pixels, columns=recipe.data.columns, videos=False
        )
        for post in report.posts:
            if post_id in (None, post.id):
                return post
        faults += [*describe(report.problems, 3), *report.hints]
    named = "good row" if post_id is None else f"post {post_id!r} among the good rows"
    told = "".join(f"\n{line}" for line in faults)
    raise ManifestError(f"no {named} of {' or '.join(map(str, files))}: give the id of another{told}")

"""A recipe's prompts as a model would see them, for one post; nothing is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agents.client.base import Picture
from agents.judgment import Judgment, PostLike, State
from selftrain.config import Recipe
from selftrain.data.manifest import read_manifest
from selftrain.data.task import Task, load_task
from selftrain.errors import ManifestError

if TYPE_CHECKING:
    from agents.client.base import ChatRequest


class Preview(NamedTuple):
    """One prompt: the file that words its question, and the whole request."""

    template: str
    request: ChatRequest

    def lines(self) -> Iterator[str]:
        """The turns, one after the other; pictures by their size."""
        for message in self.request.messages:
            yield f"--- {message.role} ---"
            for part in message.parts:
                if isinstance(part, Picture):
                    yield f"[picture: {part.media_type}, {len(part.data):,} bytes, sha256 {part.sha256[:12]}]"
                else:
                    yield from part.split("\n")


def previews(recipe: Recipe, post_id: str | None = None) -> list[Preview]:
    """Every prompt that the recipe's protocol can send about one post, in their order.

    Stand-ins take the place of what other agents and the classifier will have said, and labelled examples
    are left out: they are drawn when a run begins.

    Args:
        recipe: Names manifest, task and protocol.
        post_id: Of the manifest, or of the pool's own; None: the first post.

    Raises:
        TaskError, ManifestError, PromptError: What cannot be read, or no post of that id.
    """
    import asyncio

    from agents.ask.protocols import PROTOCOLS, all_asks
    from selftrain.build import build_vlm_agent

    task = load_task(recipe.data.task)
    agent = build_vlm_agent(recipe, task)
    post = _find(recipe, task, post_id)
    said = Judgment(
        "reviewer",
        0,
        State.LABEL,
        task.positive,
        None,
        "(here stands the rationale of this agent)",
        "preview",
    )
    alone, then = all_asks(PROTOCOLS[recipe.vlm.protocol], said, task.negative)
    seen = asyncio.run(agent.prepare_post(post))
    if seen.fault:
        raise ManifestError(f"post {post.id!r} cannot be shown: {seen.fault}")
    return [Preview(ask.template, agent.request(seen, ask)) for ask in (*alone, *then)]


def _find(recipe: Recipe, task: Task, post_id: str | None) -> PostLike:
    files: list[Path] = [f for f in (recipe.data.manifest, recipe.data.pool) if f is not None]
    for file in files:
        report = read_manifest(file, task, max_pixels=recipe.data.max_image_pixels)
        for post in report.posts:
            if post_id is None or post.id == post_id:
                return post
    raise ManifestError(
        f"no post {post_id!r} in {' or '.join(map(str, files))}: give the id of a row that `selftrain data"
        " check` finds no fault with"
    )

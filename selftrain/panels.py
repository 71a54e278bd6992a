"""The panel that a recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from agents.judgment import Accepted, Candidate, Judgment, LabelledPost, PostLike, State, Verdict
from selftrain.corpus import Corpus
from selftrain.recipe import Recipe

if TYPE_CHECKING:
    from agents.review import Panel
    from selftrain.data.task import Task


class NoPanel:
    """Takes the classifier's word for it: every candidate is consistent. The ablation without agents."""

    simulated = False

    def learn(
        self,
        labelled: Sequence[LabelledPost],
        *,
        accepted: Sequence[Accepted] = (),
        pool: Sequence[PostLike] = (),
    ) -> None:
        """Nothing to learn."""

    def verify(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """The classifier's own label, said once more."""
        return [
            Verdict(one.post.id, one.label, one.probability, (_echo(one.label, one.probability),))
            for one in candidates
        ]

    def recall(self, labelled: Sequence[LabelledPost]) -> dict[str, list[Judgment]]:
        """No agent, no judgments."""
        return {}

    def describe(self) -> dict[str, Any]:
        return {"protocol": "none", "simulated": False, "agents": []}


def _echo(label: str, probability: float) -> Judgment:
    return Judgment("classifier", 0, State.LABEL, label, probability, "no agent was asked", "classifier")


def build_panel(
    recipe: Recipe, task: Task, corpus: Corpus, *, out: Path | None = None, progress: bool = False
) -> Panel:
    """The agents of a recipe.

    Args:
        recipe: Which agents, with which settings; its seed fixes every draw.
        task: What vision-language agents are told of.
        corpus: Gives the image features to agents that look at images, and the truth to simulated ones.
        out: The run folder; vision-language agents keep their answers beside it.
        progress: Whether agents that take long show how far they are.

    Raises:
        AgentError: Agents that cannot be built as asked.
    """
    from agents.review import AgentPanel

    section, seed = recipe.agents, recipe.seed
    classes = (corpus.positive, corpus.negative)
    match section.kind:
        case "vlm":
            from selftrain.vlm_panel import build_vlm_panel

            assert out is not None, "vision-language agents are asked for a run"
            return build_vlm_panel(recipe, task, out, progress=progress)
        case "none":
            return NoPanel()
        case "offline":
            from agents.offline import offline_agents

            return AgentPanel(offline_agents(classes, image_vectors=_image_vectors(corpus), seed=seed))
        case "replayed":
            from agents.replayed import replayed_agents

            assert section.file is not None, "the recipe checks it"
            return AgentPanel(replayed_agents(section.file))
        case "simulated":
            from agents.simulated import SimulatedAgent, symmetric

            truth = {
                post.id: corpus.class_name(int(value))
                for post, value in zip(corpus.posts, corpus.truth, strict=True)
                if value >= 0
            }
            confusion = symmetric(classes, section.accuracy)
            roles = ("reviewer", "user")
            return AgentPanel(
                [SimulatedAgent(r, truth, confusion, abstention=section.abstention, seed=seed) for r in roles]
            )


class _ImageVectors:
    """Posts to the image blocks of their feature rows; zeros where a post has no image."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._position_of = {post.id: position for position, post in enumerate(corpus.posts)}

    def __call__(self, posts: Sequence[PostLike]) -> npt.NDArray[np.float32]:
        assert self._corpus.table is not None, "features are extracted before the agents look"
        positions = np.array([self._position_of[post.id] for post in posts], dtype=np.int64)
        return self._corpus.rows(positions)[:, self._corpus.table.layout.image]


def _image_vectors(corpus: Corpus) -> _ImageVectors | None:
    """None when no post has an image: then the agents look at texts only."""
    return _ImageVectors(corpus) if any(post.images for post in corpus.posts) else None

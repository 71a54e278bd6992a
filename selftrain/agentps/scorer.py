"""A trained AgentPS model behind the contract of `selftrain.serving`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selftrain.agentps.checkpoint import VALIDATION, AgentPSModel, load
from selftrain.agentps.dataset import FINAL, example
from selftrain.agentps.evaluate import score
from selftrain.agentps.prediction import prediction_row
from selftrain.data.posts import Post
from selftrain.models.scorer import PostScore, ScoreFailure, ValidationScores
from selftrain.store.run_dir import read_jsonl

BATCH = 16


class AgentPSScorer:
    """See `selftrain.models.scorer.Scorer`.

    Args:
        loaded: The model.
        device: Where it computes.
    """

    kind = "agentps"

    def __init__(self, loaded: AgentPSModel, device: str) -> None:
        self._loaded = loaded
        self._device = device
        loaded.built.model.to(device)
        self.name = loaded.folder.resolve().name
        self.classes = loaded.task.names
        self.positive = loaded.task.positive
        self.fingerprint = loaded.fingerprint

    def score(self, posts: Sequence[Post]) -> list[PostScore | ScoreFailure]:
        """One result a post, in order, with every question's probabilities."""
        built = self._loaded.built
        # ids need not differ here, and labels are not read
        wanted = (
            example(Post("", post.text, post.images, video=post.video), built.questions) for post in posts
        )
        results: list[PostScore | ScoreFailure] = []
        for one in score(built.model, built.collator, wanted, batch_size=BATCH, device=self._device):
            if one.reason:
                results.append(ScoreFailure(one.reason))
            else:
                row = prediction_row(built.questions, one)
                results.append(
                    PostScore(row["label"], row["probability"], row["probabilities"], row["process"])
                )
        return results

    def validation(self) -> ValidationScores | None:
        """The scores of the best epoch; posts that could not be read are left out."""
        file = self._loaded.folder / VALIDATION
        if not file.exists():
            return None
        rows = [row for row in read_jsonl(file) if "probabilities" in row]
        labels = [row["truth"][FINAL] == self.positive for row in rows]
        odds = [row["probabilities"][self.positive] for row in rows]
        return ValidationScores(np.array(labels, dtype=np.int8), np.array(odds, dtype=np.float64))


def open_agentps(path: Path) -> AgentPSScorer:
    """The model of a folder, on a GPU where there is one.

    Raises:
        ModelError, BackboneError: It cannot be loaded.
    """
    from backbones.loading import place

    return AgentPSScorer(load(path), str(place().device))

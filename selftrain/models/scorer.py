"""What every model can do once it is trained: score posts. The server and the filter know no more of it.

Shape legend: ``V`` validation posts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from selftrain._util.types import FloatArray, LabelArray
from selftrain.data.posts import Post

AGENTPS_FILE = "agentps.json"
ACT_FILE = "act.json"
RUN_FILE = "recipe.toml"
UNSEEN = "it has a video, which the loop's classifier does not read: score it with an AgentPS model"


class PostScore(NamedTuple):
    """What a model says of one post.

    Attributes:
        label: The likeliest class.
        probability: Of that class.
        probabilities: Class -> calibrated probability; they sum to 1.
        process: Question -> answer -> probability; empty for a model that is asked no questions.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]
    process: Mapping[str, Mapping[str, float]] = {}


class ScoreFailure(NamedTuple):
    """Why one post has no score."""

    reason: str


class ValidationScores(NamedTuple):
    """What a model says of the posts that it was validated on; thresholds are chosen on them.

    Attributes:
        labels: [V] 1 positive, 0 negative.
        probabilities: [V] of the positive class.
    """

    labels: LabelArray
    probabilities: FloatArray


class Scorer(Protocol):
    """A loaded model. It is used by one thread at a time.

    Attributes:
        kind: "classifier" (of the loop) or "agentps".
        name: Of its folder.
        classes: Names; `PostScore.probabilities` has these keys.
        positive: The class that is looked for.
        fingerprint: Hex SHA-256 of everything that can change a score.
    """

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def positive(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...

    def score(self, posts: Sequence[Post]) -> list[PostScore | ScoreFailure]:
        """One result a post, in order. Ids need not differ; any number of posts, in bounded memory."""
        ...

    def validation(self) -> ValidationScores | None:
        """The stored scores of the validation posts; None when none were stored."""
        ...

"""A recipe: everything a run needs to know, in TOML, checked by pydantic. Read here and nowhere else.

Below this module everything takes plain arguments.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from selftrain._util.plugins import is_own
from selftrain._util.toml_sections import Section, read_table

Options = dict[str, Any]
"""Keyword arguments of a class of one's own."""


def _known(kind: str, built_in: Collection[str], key: str) -> str:
    if kind not in built_in and not is_own(kind):
        names = ", ".join(f'"{name}"' for name in built_in)
        raise ValueError(
            f'{key} is {kind!r}: expected one of {names}, or a "package.module:Class" of your own'
        )
    return kind


AGENTS = ("offline", "vlm", "replayed", "simulated", "none")
BACKBONES = ("minilm_efficientnet", "clip")


class DataSection(Section):
    """Where the posts are and how they are split. Paths are relative to the recipe."""

    manifest: Path
    task: Path
    # a manifest of its own for a split; without one the posts of `manifest` are split by `shares`
    validation: Path | None = None
    test: Path | None = None
    pool: Path | None = None
    # field -> column of the manifests that holds it, where that is called otherwise: { label = "class" }
    columns: dict[str, str] = Field(default_factory=dict)
    # "column": every row of `manifest` names its split; "shares": stratified by label. Where rows name a
    # split and this is not set, the run stops and asks
    split: Literal["shares", "column"] = "shares"
    train_share: float = Field(0.7, gt=0, le=1)
    validation_share: float = Field(0.3, ge=0, lt=1)
    test_share: float = Field(0.0, ge=0, lt=1)
    # use only so many labels; the other labelled posts join the pool with their labels hidden
    labelled: int | None = Field(None, ge=2)
    balanced_labels: bool = True
    # cut the larger classes down to the smallest before splitting
    balance: bool = False
    duplicates: Literal["any", "all", "off"] = "any"
    near_duplicate_cosine: float = Field(0.97, gt=0, le=1)
    max_bad_rows: int = Field(100, ge=0)
    max_bad_share: float = Field(0.05, ge=0, le=1)
    max_image_pixels: int = Field(50_000_000, ge=1)

    @model_validator(mode="after")
    def _shares_add_up(self) -> DataSection:
        total = self.train_share + self.validation_share + self.test_share
        if self.split == "shares" and abs(total - 1) > 1e-6:
            raise ValueError(
                f"train_share + validation_share + test_share is {total:g}: expected 1"
                " (a split with a manifest of its own has share 0)"
            )
        return self


class BackboneSection(Section):
    """What turns posts into features."""

    # "minilm_efficientnet", "clip", or "package.module:Class"
    name: str = "minilm_efficientnet"
    options: Options = Field(default_factory=dict)
    model: str = "ViT-L-14"
    weights: str = "openai"
    device: str = "auto"
    batch_size: int = Field(64, ge=1)
    workers: int = Field(0, ge=0)
    cache: Path | None = None  # default: a folder of the user's cache, shared by all runs

    _check_name = field_validator("name")(lambda kind: _known(kind, BACKBONES, "backbone.name"))


class ClassifierSection(Section):
    """The head, and how much of the backbone is trained with it."""

    kind: str = "built_in"  # or "package.module:Class", a trainer made of its options alone
    options: Options = Field(default_factory=dict)
    train: Literal["head", "full", "lora"] = "head"
    head: Literal["linear", "mlp"] = "mlp"
    hidden: int = Field(32, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    epochs: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0, le=1e6)
    weight_decay: float | None = Field(None, ge=0)
    batch_size: int = Field(16, ge=1)
    lora_rank: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)

    _check_kind = field_validator("kind")(lambda kind: _known(kind, ("built_in",), "classifier.kind"))


class LossSection(Section):
    """The PNU loss. `balance` is the article's P (the paper's gamma, Sakai's eta)."""

    kind: str = "pnu"  # or "package.module:Class", made of its options alone
    options: Options = Field(default_factory=dict)
    form: Literal["weighted", "convex", "sakai", "nnpu", "pn"] = "weighted"
    balance: float = Field(0.1, ge=-1, le=1)
    theta: float | Literal["estimate"] = "estimate"
    # "count": an agreed post counts half as much as a labelled one, however many there are of each
    lambda_soft: float | Literal["count"] = "count"
    lambda_unlabelled: float = Field(0.1, ge=0)
    soft_positive: float = Field(0.8, gt=0.5, le=1)

    _check_kind = field_validator("kind")(lambda kind: _known(kind, ("pnu",), "loss.kind"))

    @model_validator(mode="after")
    def _theta_in_range(self) -> LossSection:
        if isinstance(self.theta, float) and not 0 < self.theta < 1:
            raise ValueError(f'theta is {self.theta:g}: expected a share between 0 and 1, or "estimate"')
        if isinstance(self.lambda_soft, float) and not 0 <= self.lambda_soft < math.inf:
            raise ValueError(f'lambda_soft is {self.lambda_soft:g}: expected a number from 0, or "count"')
        return self


class SelectionSection(Section):
    """How many of the most confident pool posts are verified in a round, and of which class."""

    kind: str = "top_k"  # or "package.module:Class", made of its options alone
    options: Options = Field(default_factory=dict)
    k: int = Field(500, ge=1)
    shares: Literal["equal", "natural"] | dict[str, float] = "equal"
    # posts once found divergent may be chosen again: agents that learn may think otherwise by then
    reselect_divergent: bool = True
    # accepted posts whose label the best classifier no longer gives are unlabelled again
    retract_flipped: bool = True

    _check_kind = field_validator("kind")(lambda kind: _known(kind, ("top_k",), "selection.kind"))


class AgentsSection(Section):
    """Who verifies: `none` takes the classifier's word for it (an ablation)."""

    # "offline", "vlm", "replayed", "simulated", "none", or "package.module:Class", made of its options
    kind: str = "offline"
    options: Options = Field(default_factory=dict)
    file: Path | None = None  # replayed: verdicts.jsonl of a run
    accuracy: float = Field(0.9, ge=0, le=1)  # simulated
    abstention: float = Field(0.0, ge=0, le=1)  # simulated
    # an agent whose balanced accuracy on the labelled posts may be chance ends the run; offline agents, which
    # cost nothing and learn again each round, only unless this is said
    on_near_chance: Literal["stop", "continue"] | None = None

    _check_kind = field_validator("kind")(lambda kind: _known(kind, AGENTS, "agents.kind"))

    @model_validator(mode="after")
    def _file_given(self) -> AgentsSection:
        if self.kind == "replayed" and self.file is None:
            raise ValueError('agents.kind is "replayed" but agents.file names no file to replay')
        return self


class VlmSection(Section):
    """Vision-language agents: where they are served, what they are asked, what they may cost."""

    servers: tuple[str, ...] = ()  # endpoints of vLLM servers that serve the same model
    model: str = ""  # as it is served; empty: the only one that is
    revision: str = ""  # of the weights, where the server's model comes from a hub
    key_variable: str = "SELFTRAIN_API_KEY"  # the environment variable that holds the servers' key

    protocol: Literal["cross_review", "sequential", "zero_shot", "few_shot", "cot"] = "cross_review"
    # ask everybody again in a cross-review, even where the verdict is settled
    always_cross_review: bool = False
    prompts: Path | None = None  # a folder of prompt files that replace the built-in ones
    form: Literal["reason_first", "label_first", "label_only", "cot"] | None = None
    rationale_chars: int = Field(240, ge=20, le=4000)
    text_chars: int = Field(4000, ge=100)  # longer texts are cut, with a mark
    image_side: int = Field(768, ge=28, le=4096)  # pixels; larger pictures are scaled down
    max_images: int = Field(16, ge=0, le=16)
    examples: int = Field(2, ge=1)  # of each class, for few_shot

    concurrency: int = Field(64, ge=1)  # calls under way for each endpoint, at most
    timeout: float = Field(120, gt=0)  # seconds, of one try
    retries: int = Field(4, ge=0)  # of a call that brought no answer
    patience: float = Field(120, ge=0)  # seconds without any server before the run gives up
    attempts: int = Field(3, ge=1)  # answers to one question, when they cannot be used
    token_cap: int | None = Field(None, ge=1)  # prompt and answer tokens of the whole run
    # one SQLite file for all runs of a folder; default: responses.sqlite beside the run folder
    store: Path | None = None


class RoundsSection(Section):
    """How often to go round, and when to stop."""

    max: int = Field(10, ge=0)
    patience: int = Field(3, ge=1)
    # most candidates verified in all rounds together
    budget: int | None = Field(None, ge=1)
    start: Literal["pretrained", "best"] = "pretrained"


class HumanSection(Section):
    """A small budget of human reviews, spent on what the agents cannot agree on."""

    # posts over the whole run that people may be asked about; 0: nobody is asked
    budget: int = Field(0, ge=0)
    per_round: int = Field(50, ge=1)
    # how an estimated error becomes the chance of being reviewed, see docs/human-budget.md
    rule: Literal["normalised", "exponential", "threshold"] = "exponential"
    floor: float = Field(0.1, ge=0, le=1)  # the share of the budget that is spread evenly
    # where error estimates come from: what classifier and agents said of a post, and how far apart they are;
    # or a model that criticizes the label that they give together, in a way that `act select-models` can test
    source: Literal["disagreement", "criticizer"] = "disagreement"
    strategy: Literal["plain", "reasoning", "graded", "devils_advocate", "log_probability", "perplexity"] = (
        "devils_advocate"
    )
    servers: tuple[str, ...] = ()  # of the criticizing model; none: it is that of `vlm`
    model: str = ""  # as it is served there; empty: the only one that is
    double_annotation_rate: float = Field(0.0, ge=0, le=1)  # of the posts, reviewed by two people
    # while reviews are missing: end in good order, or look for them until they are there
    wait: Literal["end", "poll"] = "end"


class Recipe(Section):
    """A whole recipe, with its paths resolved."""

    seed: int = Field(0, ge=0, lt=2**32)
    threads: int | None = Field(None, ge=1)
    data: DataSection
    backbone: BackboneSection = BackboneSection()
    classifier: ClassifierSection = ClassifierSection()
    loss: LossSection = LossSection()
    selection: SelectionSection = SelectionSection()
    agents: AgentsSection = AgentsSection()
    vlm: VlmSection = VlmSection()
    rounds: RoundsSection = RoundsSection()
    human: HumanSection = HumanSection()

    @model_validator(mode="after")
    def _servers_given(self) -> Recipe:
        if self.agents.kind == "vlm" and not self.vlm.servers:
            raise ValueError(
                'agents.kind is "vlm" but vlm.servers names no endpoint: start a server with `selftrain'
                " agents serve MODEL` and write what it prints, for instance"
                ' vlm.servers = ["http://127.0.0.1:8000"]'
            )
        return self

    @model_validator(mode="after")
    def _criticizer_given(self) -> Recipe:
        asked = self.human.budget > 0 and self.human.source == "criticizer"
        if asked and not self.human.servers and not self.vlm.servers:
            raise ValueError(
                'human.source is "criticizer" but neither human.servers nor vlm.servers names an endpoint:'
                " write where the criticizing model is served, for instance"
                ' human.servers = ["http://127.0.0.1:8001"]'
            )
        return self


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply ``section.key=value`` overrides, each value in TOML (a bare word is a string).

    Raises:
        RecipeError: The file cannot be read, is not TOML, or does not describe a recipe; the message lists
            every fault with its place.
    """
    return read_table(Recipe, Path(path), overrides, _PATHS)


_PATHS = (
    ("data", "manifest"),
    ("data", "task"),
    ("data", "validation"),
    ("data", "test"),
    ("data", "pool"),
    ("backbone", "cache"),
    ("agents", "file"),
    ("vlm", "prompts"),
    ("vlm", "store"),
)

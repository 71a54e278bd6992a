"""The recipe of AgentPS: which posts, which model, how it is trained. Read here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from backbones.errors import WeightsError
from backbones.images import MAX_PIXELS
from backbones.mllm import smollm2_efficientnet
from backbones.mllm.answering import ASKING, Attention, Variant
from backbones.mllm.base import Padding
from backbones.mllm.hub import Album
from selftrain._util.toml_sections import TABLE, WORD, WORD_OR_TABLE, Section, TablePath, read_table
from selftrain.agentps.frames import Frames
from selftrain.data.manifest import Tolerance
from selftrain.errors import RecipeError
from selftrain.models.metrics import PRECISIONS
from selftrain.models.operating_points import Goal
from selftrain.models.train_loop import LAST
from selftrain.store.objects import fetch_table

METRICS = (
    "f1", "macro_f1", "auc", "precision_at_recall_50",
    *(f"recall_at_precision_{round(one * 100)}" for one in PRECISIONS),
)  # fmt: skip


Divisor = Literal["posts", "expected", "answers"]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ClassWeights = Annotated[
    Annotated[Literal["balanced"], WORD] | Annotated[dict[str, Weight], TABLE], WORD_OR_TABLE
]


def check_names(found: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise RecipeError for names, of questions or answers, that are not `known`."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise RecipeError(f"{found} {unknown}; expected some of {list(known)}")


class SourceSettings(Section):
    """Which posts. Paths are relative to the recipe; a run or manifest named at the prompt comes first."""

    run: Path | None = None  # a finished run: its grown dataset
    manifest: TablePath | None = None  # or a manifest with labels
    task: Path | None = None  # needed with a manifest; of a run, replaces the task it was made with
    process: TablePath | None = None  # a manifest whose process answers are taken, by post id
    validation: TablePath | None = None  # without one: the run's, or rows whose `split` says so, or a share
    validation_share: float = Field(0.15, gt=0, lt=1)
    # a batch of the run's ledger of reviews, for instance "divergent": its posts are learned from by the ACT
    # loss, which stays unbiased though people saw a sample of them
    reviews: str | None = None
    # what an accepted pseudo-label without a posterior is worth as a target; 1 takes it for a person's
    soft_target: float = Field(0.8, gt=0.5, le=1)
    # field -> column that holds it, of `manifest` and `validation`; a run and `process` have others
    columns: dict[str, str] = Field(default_factory=dict)
    max_bad_rows: int = Field(100, ge=0)
    max_bad_share: float = Field(0.05, ge=0, le=1)
    max_image_pixels: int = Field(MAX_PIXELS, ge=1, le=MAX_PIXELS)

    @property
    def tolerance(self) -> Tolerance:
        """How many rows of a manifest may be set aside."""
        return Tolerance(self.max_bad_rows, self.max_bad_share)


class FrameSettings(Section):
    """How albums and videos are shown (published: 16 frames of 360 x 636)."""

    count: int = Field(16, ge=0, le=64)  # 0: words alone
    width: int = Field(360, ge=14, le=4096)
    height: int = Field(636, ge=14, le=4096)
    repeat: bool = True


class ModelSection(Section):
    """What is built (published: LLaVA-OneVision, rank 128, alpha 256, left padding)."""

    base: str = "smollm2_efficientnet"  # or a name on a hub, or a folder
    revision: str = "main"  # of the weights on a hub
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of a hub's weights; auto: as saved
    variant: Variant = "agentps"  # which questions are asked, and where their heads read
    rounds: bool = False  # ask each question in a turn of its own, answered as the assistant's turn begins
    fed: bool = False  # the final head hears what the process heads say, not their state alone
    policy: bool = False  # put the task's policy before every post
    # of prompt and text together, images aside; published: 256 with a prompt of 60. Every shipped task leaves
    # a post 196 so; with the policy before it they want up to 485
    max_tokens: int = Field(384, ge=16, le=32_768)
    padding: Padding = "left"
    album: Album = "images"  # give a hub's model several pictures as images or as one video
    rank: int = Field(128, ge=1)  # of the low-rank adapters
    alpha: int = Field(256, ge=1)
    adapter_dropout: float = Field(0.0, ge=0, lt=1)
    vision: bool = False  # adapt the vision tower too
    hidden: int = Field(256, ge=1)  # of the answer heads
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _variant_has_it(self) -> ModelSection:
        asking = ASKING[self.variant]
        for name, chosen, there in (
            ("rounds", self.rounds, asking.asked), ("fed", self.fed, asking.answered)
        ):  # fmt: skip
            if chosen and not there:
                lacking = "asks no question" if name == "rounds" else "has no process heads"
                raise ValueError(f"{name} is set, and the variant {self.variant!r} {lacking}: leave it out")
        return self


class ModelSettings(ModelSection):
    """All that is built before a weight is trained or loaded; without frames the model reads words alone."""

    frames: Frames | None = None
    seed: int = 0  # of first weights


class TrainingSettings(Section):
    """How it is trained."""

    epochs: int = Field(5, ge=1)
    batch_size: int = Field(16, ge=1)  # posts of a step
    part: int = Field(16, ge=1)  # posts computed at once; a step is accumulated from parts
    # tokens computed at once, padding among them, in training and evaluation: short posts make large parts,
    # long ones small parts without padding. A longer post is computed alone; None: no limit
    part_tokens: int | None = Field(None, ge=1)
    workers: int | None = Field(None, ge=0)  # processes that read for a GPU; None: one a core
    # a folder where what the frozen vision tower makes of each picture is kept, from the first epoch on:
    # LLaVA-OneVision 0.35 to 1.3 MB a picture, smollm2_efficientnet 0.1
    vision_cache: Path | None = None
    vision_cache_gb: float = Field(50.0, gt=0)  # what it may take of each model
    compile: bool = False  # the blocks of tower and language model by torch.compile: minutes at the beginning
    # how language model and tower compute attention; "auto": as transformers chooses. On a CPU "eager" is the
    # fastest for short posts in bfloat16; "flash_attention_2" wants its package
    attention: Attention = "auto"
    learning_rate: float = Field(1e-4, gt=0, le=1)  # of adapters, the token's row and new parts, at its peak
    head_learning_rate: float = Field(1e-3, gt=0, le=1)
    # of everything but norms, biases and the row
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False)
    warmup: float = Field(0.1, ge=0, lt=1)  # share of the steps over which the rates rise
    clip: float = Field(1.0, gt=0)  # the largest norm of a gradient
    # question -> weight in the loss, "final" among them; 1 for those not named
    weights: dict[str, Weight] = Field(default_factory=dict)
    # question -> weight of each answer in its loss: "balanced", so that every answer weighs alike however
    # many posts have it, or numbers, 1 for answers not named
    class_weights: dict[str, ClassWeights] = Field(default_factory=dict)
    # what a question's loss is divided by: the posts of the step, so that every post weighs alike (published,
    # where every post answers); the posts expected to answer it; or those that do
    divisor: Divisor = "posts"
    # keep the loss of reviewed posts (data.reviews) above 0; off, it is unbiased and has no lower bound
    non_negative: bool = True
    metric: str = "macro_f1"  # of the validation posts; says which weights are kept. "last": those at the end
    validate_every: int | None = Field(None, ge=1)  # steps; also within an epoch, not at its end alone
    patience: int | None = Field(None, ge=1)  # end after so many validations without a better one
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu"] = "auto"
    checkpointing: bool = False
    save_every: int = Field(200, ge=1)  # steps between two saves; an epoch's end saves too
    evaluation_batch: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _metric_known(self) -> TrainingSettings:
        if self.metric not in (*METRICS, LAST):
            raise ValueError(f"metric is {self.metric!r}; expected one of {', '.join((*METRICS, LAST))}")
        if self.metric == LAST and self.patience is not None:
            raise ValueError(
                'metric = "last" keeps the weights at the end, and patience waits for better ones:'
                " leave out one of the two"
            )
        return self

    def question_weights(self, questions: Sequence[str]) -> tuple[float, ...]:
        """Return w_q of each question, in their order, "final" last.

        RecipeError: one that is not asked, or 0 for every question.
        """
        check_names("training.weights names", self.weights, questions)
        weights = tuple(self.weights.get(name, 1.0) for name in questions)
        if not any(weights):
            raise RecipeError("training.weights is 0 for every question: nothing is learned")
        return weights

    def answer_weights(self, counts: Mapping[str, Mapping[str, int]]) -> list[list[float]] | None:
        """Return the weight of every answer of each question, in their order; None where all are 1.

        `counts`: question -> answer -> how many training posts have it, the final question last.
        """
        check_names("training.class_weights names", self.class_weights, counts)
        if not self.class_weights:
            return None
        return [_answer_weights(name, self.class_weights.get(name, {}), counts[name]) for name in counts]


def _answer_weights(
    question: str, given: Literal["balanced"] | Mapping[str, float], counts: Mapping[str, int]
) -> list[float]:
    if given == "balanced":
        # every answer the same sum, and the mean over the posts 1; an answer that no post has weighs nothing
        mean = sum(counts.values()) / max(sum(count > 0 for count in counts.values()), 1)
        return [mean / count if count else 1.0 for count in counts.values()]
    check_names(f"training.class_weights.{question} names", given, counts)
    weights = [float(given.get(answer, 1.0)) for answer in counts]
    if not any(weights):
        raise RecipeError(f"training.class_weights.{question} is 0 for every answer: nothing is learned")
    return weights


class AgentPSRecipe(Section):
    """The whole recipe."""

    seed: int = Field(0, ge=0, lt=2**32)
    data: SourceSettings = SourceSettings()
    model: ModelSection = ModelSection()
    frames: FrameSettings = FrameSettings()
    training: TrainingSettings = TrainingSettings()
    # question -> which answer is given: "likeliest", or what a threshold set on the validation posts reaches,
    # "precision 0.8", "recall 0.9" or "f1" of the answer looked for, "macro_f1" of all answers
    decisions: dict[str, str] = Field(default_factory=dict)

    @field_validator("decisions")
    @classmethod
    def _rules_known(cls, given: dict[str, str]) -> dict[str, str]:
        return {question: str(Goal.parse(rule)) for question, rule in given.items()}

    @model_validator(mode="after")
    def _video_is_full(self) -> AgentPSRecipe:
        if self.model.album == "video" and not (self.frames.repeat and self.frames.count):
            raise ValueError(
                'model.album is "video", and the videos of a batch must be equally long: set frames.repeat ='
                " true and frames.count to at least 1"
            )
        return self

    @model_validator(mode="after")
    def _base_can(self) -> AgentPSRecipe:
        if self.model.base == smollm2_efficientnet.NAME:
            try:
                smollm2_efficientnet.check_given(self.model.dtype, self.model.album)
            except WeightsError as error:
                raise ValueError(f"model.{error}") from error
        return self

    @model_validator(mode="after")
    def _tower_sees_pictures(self) -> AgentPSRecipe:
        if self.model.vision and not self.frames.count:
            raise ValueError(
                "model.vision = true trains the vision tower, and frames.count = 0 shows it no picture: leave"
                " out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _tower_is_frozen(self) -> AgentPSRecipe:
        if self.model.vision and self.training.vision_cache is not None:
            raise ValueError(
                "training.vision_cache keeps what the vision tower gives, and model.vision = true trains it:"
                " leave out one of the two"
            )
        return self

    def model_settings(self) -> ModelSettings:
        """Return all that is built."""
        frames = Frames(**self.frames.model_dump(), max_pixels=self.data.max_image_pixels)
        shown = frames if frames.count else None
        return ModelSettings(**self.model.model_dump(), frames=shown, seed=self.seed)


def load_agentps_recipe(
    path: Path | None, overrides: Sequence[str] = (), *, source: Path | None = None
) -> AgentPSRecipe:
    """Read a recipe from a TOML file, or the defaults; ``section.key=value`` overrides come last.

    `source` is a run or manifest in the place of the one that the file names. RecipeError: the file cannot be
    read, or does not describe a recipe, with every fault listed; or `source` is not there.
    """
    recipe = read_table(AgentPSRecipe, path, overrides)
    if source is None:
        return recipe
    fetch_table(source)
    if not source.exists():
        raise RecipeError(f"{source} is not there: expected the folder of a finished run, or a manifest")
    if not source.is_dir():
        named: dict[str, Path | None] = {"run": None, "manifest": source.resolve()}
    else:
        named = {"run": source.resolve(), "manifest": None}
        typed = {one.partition("=")[0].strip() for one in overrides}
        if recipe.data.manifest is not None:
            # the file's task and validation posts belong to the file's manifest; a run has its own
            named |= {key: None for key in ("task", "validation") if f"data.{key}" not in typed}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=named)})

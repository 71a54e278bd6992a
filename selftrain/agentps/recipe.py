"""A recipe of AgentPS: what is read, what is built, how it is trained. Read here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from selftrain._util.toml_sections import Section, read_table
from selftrain.agentps.architecture import Architecture
from selftrain.agentps.training import Schedule
from selftrain.errors import RecipeError
from selftrain.models.metrics import PRECISIONS

METRICS = (
    "f1", "macro_f1", "auc", "precision_at_recall_50",
    *(f"recall_at_precision_{round(one * 100)}" for one in PRECISIONS),
)  # fmt: skip


class DataSection(Section):
    """Which posts. Paths are relative to the recipe; a run or manifest named at the prompt comes first."""

    run: Path | None = None  # a finished run: its grown dataset
    manifest: Path | None = None  # or a manifest with labels
    task: Path | None = None  # needed with a manifest; of a run, replaces the task it was made with
    process: Path | None = None  # a manifest whose process answers are taken, by post id
    validation: Path | None = None  # without one: the run's, or rows whose `split` says so, or a share
    validation_share: float = Field(0.15, gt=0, lt=1)
    # a batch of the run's ledger of reviews, for instance "divergent": its posts are learned from by the ACT
    # loss, which stays unbiased though people saw a sample of them
    reviews: str | None = None
    # what an accepted pseudo-label is worth as a target; 1 takes it for a person's
    soft_target: float = Field(0.8, gt=0.5, le=1)
    columns: dict[str, str] = Field(default_factory=dict)  # field -> column that holds it, as of a run
    max_bad_rows: int = Field(100, ge=0)
    max_bad_share: float = Field(0.05, ge=0, le=1)
    max_image_pixels: int = Field(50_000_000, ge=1)


class FramesSection(Section):
    """How albums and videos are shown (published: 16 frames of 360 x 636)."""

    count: int = Field(16, ge=0, le=64)  # 0: words alone
    width: int = Field(360, ge=14, le=4096)
    height: int = Field(636, ge=14, le=4096)
    repeat: bool = True


class ModelSection(Section):
    """What is built (published: LLaVA-OneVision, rank 128, alpha 256, 256 tokens, left padding)."""

    base: str = "embedded"
    revision: str = "main"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    variant: Literal["vanilla", "multitask", "agentps"] = "agentps"
    policy: bool = False
    max_tokens: int = Field(256, ge=16, le=32_768)
    padding: Literal["left", "right"] = "left"
    album: Literal["images", "video"] = "images"
    rank: int = Field(128, ge=1)
    alpha: int = Field(256, ge=1)
    adapter_dropout: float = Field(0.0, ge=0, lt=1)
    vision: bool = False
    hidden: int = Field(256, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)


class TrainingSection(Section):
    """How it is trained."""

    epochs: int = Field(5, ge=1)
    batch_size: int = Field(16, ge=1)
    part: int = Field(16, ge=1)  # posts computed at once; a step is accumulated from parts
    learning_rate: float = Field(1e-4, gt=0, le=1)
    head_learning_rate: float = Field(1e-3, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    clip: float = Field(1.0, gt=0)
    # question -> weight in the loss, "final" among them; 1 for those not named
    weights: dict[str, float] = Field(default_factory=dict)
    metric: str = "macro_f1"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu"] = "auto"
    checkpointing: bool = False
    save_every: int = Field(200, ge=1)
    evaluation_batch: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _metric_known(self) -> TrainingSection:
        if self.metric not in METRICS:
            raise ValueError(f"metric is {self.metric!r}; expected one of {', '.join(METRICS)}")
        return self


class AgentPSRecipe(Section):
    """The whole recipe."""

    seed: int = Field(0, ge=0)
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    frames: FramesSection = FramesSection()
    training: TrainingSection = TrainingSection()

    @model_validator(mode="after")
    def _video_is_full(self) -> AgentPSRecipe:
        if self.model.album == "video" and not (self.frames.repeat and self.frames.count):
            raise ValueError(
                'model.album is "video", and the videos of a batch must be equally long: set frames.repeat ='
                " true and frames.count to at least 1"
            )
        return self

    def architecture(self) -> Architecture:
        """What is built."""
        from selftrain.agentps.albums import Frames

        shown = self.frames
        frames = Frames(shown.count, shown.width, shown.height, shown.repeat, self.data.max_image_pixels)
        return Architecture(**self.model.model_dump(), frames=frames if shown.count else None, seed=self.seed)

    def schedule(self, questions: Sequence[str]) -> Schedule:
        """How it is trained, for questions in their order, "final" last.

        Raises:
            RecipeError: A weight for a question that the task or the variant does not ask.
        """
        given = self.training
        unknown = sorted(given.weights.keys() - set(questions))
        if unknown:
            raise RecipeError(f"training.weights names {unknown}; expected some of {list(questions)}")
        return Schedule(
            epochs=given.epochs,
            batch_size=given.batch_size,
            part=given.part,
            learning_rate=given.learning_rate,
            head_learning_rate=given.head_learning_rate,
            weight_decay=given.weight_decay,
            warmup=given.warmup,
            clip=given.clip,
            weights=tuple(given.weights.get(name, 1.0) for name in questions),
            save_every=given.save_every,
            seed=self.seed,
        )


_PATHS = tuple(("data", key) for key in ("run", "manifest", "task", "process", "validation"))


def load_agentps_recipe(
    path: Path | None, overrides: Sequence[str] = (), *, source: Path | None = None
) -> AgentPSRecipe:
    """A recipe from a TOML file, or the defaults; ``section.key=value`` overrides come last.

    Args:
        path: The file.
        overrides: Each changes one value.
        source: A run or manifest in the place of the one that the file names.

    Raises:
        RecipeError: The file cannot be read, or does not describe a recipe; the message lists every fault.
            Or `source` is not there.
    """
    recipe = read_table(AgentPSRecipe, path, overrides, _PATHS)
    if source is None:
        return recipe
    if not source.exists():
        raise RecipeError(f"{source} is not there: expected the folder of a finished run, or a manifest")
    if not source.is_dir():
        named: dict[str, Path | None] = {"run": None, "manifest": source.resolve()}
    else:
        named = {"run": source.resolve(), "manifest": None}
        typed = any(one.partition("=")[0].strip() == "data.task" for one in overrides)
        if recipe.data.manifest is not None and not typed:
            # the file's task belongs to the file's manifest; a run has its own
            named["task"] = None
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=named)})

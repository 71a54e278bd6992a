"""What `selftrain agentps train` and `evaluate` leave in a folder, read once into typed values."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from selftrain._util.types import Interval
from selftrain.agentps.dataset import FINAL
from selftrain.errors import ModelError
from selftrain.models.operating_points import Goal
from selftrain.store import checksums
from selftrain.store.scores import ReliabilityDiagram


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read the only record of a file."""
        return cls._parse(file, _read(file))

    @classmethod
    def read_lines(cls, file: Path) -> list[Self]:
        """Read a record a line."""
        lines = enumerate(_read(file).splitlines(), 1)
        return [cls._parse(f"{file}, line {number}", line) for number, line in lines]

    @classmethod
    def _parse(cls, where: object, text: bytes) -> Self:
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            place = "".join(f"{part}: " for part in fault.get("loc", ()))
            raise damaged(where, f"{place}{fault.get('msg')}") from error


class DecidedFigures(_Record):
    """What the given answers are worth: of the answer looked for against the others, with intervals."""

    precision: Interval
    recall: Interval
    accuracy: Interval


class DecisionRecord(_Record):
    """How a question is answered, and what that is worth on the posts measured on."""

    goal: str
    threshold: float | None  # from which probability on the answer looked for is given
    cut: tuple[float, ...] | None  # or what each answer's log-probability is moved by
    note: str  # why there is no threshold although one was asked for
    f1: float  # of the answer looked for, as precision and recall are
    figures: DecidedFigures

    def lines(self, looked_for: str) -> tuple[str, ...]:
        """Return in words what was asked for and what it gives; nothing of the likeliest answer."""
        if self.note:
            return (f"{self.note}; the likeliest answer is given",)
        if self.goal == str(Goal()):
            return ()
        start = "" if self.threshold is None else f"given from probability {self.threshold:.6f} on"
        rule = start or f"log-probabilities moved by {', '.join(f'{one:+.2f}' for one in self.cut or ())}"
        found = self.figures
        return (f"{looked_for!r} {rule} ({self.goal}): precision {found.precision}, recall {found.recall}",)


class CalibrationRecord(_Record):
    """How far probabilities are from what was so, the model's own and the calibrated ones."""

    slope: float
    raw: ReliabilityDiagram
    calibrated: ReliabilityDiagram


class QuestionMetrics(_Record):
    """What was measured of one question."""

    posts: int  # how many answer it
    looked_for: str  # the answer that recall and precision are about
    answers: dict[str, int]  # answer -> how many posts have it, in the order of the model's probabilities
    metrics: dict[str, Interval] | None = None  # metric -> value and interval; None where `note` says why
    note: str = ""
    # macro-F1 and accuracy over all answers, of a question with more than two
    all_answers: dict[str, float] | None = None
    # None where no post answers
    decision: DecisionRecord | None = None
    calibration: CalibrationRecord | None = None

    @property
    def overall(self) -> str:
        """Return in words what the answers that are given are worth over all of them; nothing of two."""
        if self.all_answers is None:
            return ""
        figures = "macro-F1 {macro_f1:.3f}, accuracy {accuracy:.3f}".format_map(self.all_answers)
        return f"over all {len(self.answers)} answers: {figures}"

    @property
    def base_rate(self) -> float:
        """Share of posts that have the answer looked for: the precision of choosing blindly."""
        return self.answers[self.looked_for] / self.posts


class EpochRecord(_Record):
    """One validation of a training: in or after which epoch, after how many steps, and its metrics."""

    epoch: int
    step: int
    metrics: dict[str, float]


class ModelMetrics(_Record):
    """metrics.json: of a trained model its validations and which is kept, else who was measured."""

    model: str | None = None
    questions: dict[str, QuestionMetrics]
    validations: list[EpochRecord] = []
    best: int = 0


class AboutModel(_Record):
    """agentps.json, as far as the page shows it; nothing of a folder that only measures."""

    architecture: dict[str, object] | None = None
    metric: str = "macro_f1"


class Case(_Record):
    """A line of validation.jsonl."""

    id: str
    reason: str | None = None  # why the post could not be read; None for one that was measured on
    text: str | None = None  # none where the folder is older than the texts in it
    pictures: tuple[Path, ...] = ()  # the first paths, and how many there are in all
    picture_count: int | None = None
    truth: dict[str, str | None]  # question -> its answer; None where nobody answered
    probabilities: dict[str, float] = {}  # answer -> probability, of the final and of each process question
    process: dict[str, dict[str, float]] = {}
    label: str = ""  # the answer that is given, to the final and to each process question
    answers: dict[str, str] = {}

    def probs(self, question: str) -> dict[str, float]:
        """Return answer -> probability of one question."""
        return self.probabilities if question == FINAL else self.process[question]

    def given(self, question: str) -> str:
        """Return the answer that is given to one question."""
        return self.label if question == FINAL else self.answers[question]

    @property
    def believed(self) -> float:
        """Probability of the true class; -1 where that is not known."""
        return -1 if (truth := self.truth[FINAL]) is None else self.probabilities[truth]


class LossStep(_Record):
    """A line of losses.jsonl: the loss as it was minimised, and that of each question, the final one last."""

    step: int
    loss: float
    parts: list[float]


def damaged(where: object, fault: str) -> ModelError:
    """Return the error of records that cannot be what they should be."""
    return ModelError(
        f"{where} is not what it should be ({fault}): the folder is damaged; measure the model anew with"
        " `selftrain agentps evaluate`"
    )


def _read(file: Path) -> bytes:
    checksums.check(file)
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no {file}: expected the folder of a trained model, or one that"
            " `selftrain agentps evaluate` wrote"
        ) from error
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror or error})") from error

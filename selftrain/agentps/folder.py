"""The folder of a model.

models/NAME/
├── agentps.json          the architecture, the questions, the base model's fingerprint, the best epoch
├── task.toml             the task that it was trained for
├── training.toml         the recipe as resolved
├── model.safetensors     adapters, heads and the answer token's row; the base model is not in it
├── validation.jsonl      every answer's probability on the validation posts
├── metrics.json          figures of every question with intervals; report.html shows them
├── quarantine.jsonl      what was left out, each with its reason
├── losses.jsonl          one line a step; tensorboard/ has the same
└── training.safetensors  while training goes on: where it stands
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from selftrain._util.types import Json
from selftrain.agentps.architecture import Architecture, Built, build, from_json
from selftrain.agentps.questions import Questionnaire
from selftrain.agentps.weights import load_weights
from selftrain.data.task import Task, dump_task, load_task
from selftrain.errors import ModelError
from selftrain.store import atomic

ABOUT, TASK, WEIGHTS, VALIDATION, METRICS = (
    "agentps.json", "task.toml", "model.safetensors", "validation.jsonl", "metrics.json",
)  # fmt: skip
FORMAT = 1


class Loaded(NamedTuple):
    """A trained model, on the CPU.

    Attributes:
        folder: Where it was.
        task: That it was trained for.
        architecture: Of the model.
        built: The model with all that leads posts into it.
        about: What agentps.json says.
        fingerprint: Hex SHA-256 of everything that can change a score.
    """

    folder: Path
    task: Task
    architecture: Architecture
    built: Built
    about: Json
    fingerprint: str


def describe(
    folder: Path, architecture: Architecture, task: Task, asked: Questionnaire, *, base: str, more: Json
) -> None:
    """Write agentps.json and task.toml.

    Args:
        base: The base model's fingerprint.
        more: Whatever else is worth keeping, the best epoch for instance.

    Raises:
        StorageError: The disk is full or refuses.
    """
    dump_task(task, folder / TASK)
    about = {
        "format": FORMAT,
        "architecture": architecture.as_json(),
        "questions": {one.name: list(one.answers) for one in asked.all},
        "base_fingerprint": base,
    }
    atomic.write_json(folder / ABOUT, about | more)


def load(folder: Path | str) -> Loaded:
    """The model of a folder.

    Raises:
        ModelError: No model, a damaged one, one whose training did not end, or one of another base model.
        BackboneError: The base model cannot be had.
    """
    folder = Path(folder)
    about = read_about(folder)
    try:
        architecture = from_json(about["architecture"])
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / ABOUT} describes no model ({error}): the folder is damaged") from error
    task = load_task(folder / TASK)
    return fill(folder, build(architecture, task), task, architecture)


def fill(folder: Path, built: Built, task: Task, architecture: Architecture) -> Loaded:
    """`load`, into a model that was built already.

    Raises:
        ModelError: As `load`.
    """
    about = read_about(folder)
    if {one.name: list(one.answers) for one in built.asked.all} != about["questions"]:
        raise ModelError(
            f"{folder / TASK} asks other questions than the model was trained on"
            f" ({', '.join(about['questions'])}): restore the file, or train again"
        )
    if built.base.fingerprint != about["base_fingerprint"]:
        raise ModelError(
            f"{folder} was trained on another {architecture.base} than this one (fingerprint"
            f" {about['base_fingerprint'][:12]}, here {built.base.fingerprint[:12]}): use those weights"
        )
    load_weights(built.model, folder / WEIGHTS)
    built.model.eval()
    return Loaded(folder, task, architecture, built, about, _fingerprint(folder, about))


def read_about(folder: Path) -> Json:
    """agentps.json of a finished model.

    Raises:
        ModelError: It is not there, is no JSON, or the training has not ended.
    """
    file = folder / ABOUT
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder} holds no model: it has no {ABOUT}. `selftrain agentps train RUN --out DIR` makes one"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}): the folder is damaged") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ModelError(f"{file} has not the format {FORMAT}: it is of another version of selftrain")
    if not about.get("finished"):
        raise ModelError(f"the training of {folder} has not ended: start the same command again, it goes on")
    return about


def _fingerprint(folder: Path, about: Json) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update((folder / TASK).read_bytes())
    digest.update((folder / WEIGHTS).read_bytes())
    return digest.hexdigest()

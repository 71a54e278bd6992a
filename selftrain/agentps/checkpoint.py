"""The folder of a model: its weights, what is needed to build it again, and a training that goes on.

models/NAME/
├── agentps.json          the settings, the questions, the base model's fingerprint, the best epoch, and how
│                         answers are calibrated and decided
├── task.toml             the task that it was trained for
├── training.toml         the recipe as resolved
├── model.safetensors     adapters, heads and the answer token's row; the base model is not in it
├── validation.jsonl      every answer's probability on the validation posts
├── metrics.json          metrics of every question with intervals; report.html shows them
├── quarantine.jsonl      what was left out, each with its reason
├── losses.jsonl          one line a step; tensorboard/ has the same
├── checksums.json        what shows damage to the files that are read again
└── training.safetensors  while training goes on: weights and the optimizer's moments, replaced whole
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from backbones.mllm.answering import merge, trained_names
from selftrain._util.files import read_json
from selftrain._util.printable import first_of
from selftrain._util.types import Json
from selftrain.agentps.dataset import QuestionSet
from selftrain.agentps.decisions import Decisions, QuestionDecision
from selftrain.agentps.model import Built, build
from selftrain.agentps.recipe import ModelSettings
from selftrain.agentps.sharding import laid_like, whole
from selftrain.data.task import Task, dump_task, load_task
from selftrain.errors import ModelError
from selftrain.models.train_loop import EpochResult, TrainingState
from selftrain.store import atomic, checksums
from selftrain.store.run_dir import RunFolder

ABOUT, TASK, WEIGHTS, PROGRESS = "agentps.json", "task.toml", "model.safetensors", "training.safetensors"
VALIDATION, METRICS, RECIPE = "validation.jsonl", "metrics.json", "training.toml"
QUARANTINE, PAGE = "quarantine.jsonl", "report.html"
# what training and measuring write, and people call their own files too
_WRITTEN = (TASK, VALIDATION, METRICS, QUARANTINE, PAGE)
FORMAT = 4
MERGED = "agentps-merged.json"
# a folder of its own: vLLM takes every .safetensors beside the configuration for the model's
HEADS = "answer_heads/model.safetensors"

Checked = TypeVar("Checked", bound=BaseModel)


# ---- a trained model ------------------------------------------------------------------------------------


class AgentPSModel(NamedTuple):
    """A trained model, on the CPU."""

    folder: Path  # where it was
    task: Task  # that it was trained for
    settings: ModelSettings  # that it was built from
    built: Built  # the model with all that leads posts into it
    about: Json  # what agentps.json says
    decisions: Decisions  # how answers follow from the model's probabilities
    fingerprint: str  # hex SHA-256 of everything that can change a score

    @property
    def best_epoch(self) -> int:
        """Return the epoch, from 1, after or within which the weights were these."""
        return int(self.about["best_epoch"])


def describe(
    folder: Path, settings: ModelSettings, task: Task, questions: QuestionSet, *, base: str, more: Json
) -> None:
    """Write agentps.json and task.toml; `more` is what else is worth keeping, the best epoch for instance."""
    dump_task(task, folder / TASK)
    checksums.note_written(folder / TASK)
    about = {
        "format": FORMAT,
        "architecture": settings.model_dump(mode="json"),
        "questions": {one.name: list(one.answers) for one in questions.all},
        "base_fingerprint": base,
    }
    checksums.write_json(folder / ABOUT, about | more)


def load(folder: Path | str) -> AgentPSModel:
    """Load the model of a folder.

    ModelError: none, a damaged one, one whose training did not end, or one of another base model.
    """
    folder = Path(folder)
    settings = settings_of(read_about(folder), folder / ABOUT)
    _check_sizes(settings, folder / WEIGHTS)
    task = load_task(folder / TASK)
    return fill(folder, build(settings, task), task, settings)


def _check_sizes(settings: ModelSettings, file: Path) -> None:
    """Refuse, with a ModelError, settings that ask for more room than the weights in `file` take."""
    with _opened(file) as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in list(opened.keys())}
    ranks = {shape[0] for name, shape in shapes.items() if ".lora_A." in name}
    widths = {shape[0] for name, shape in shapes.items() if name.startswith("heads.") and len(shape) == 2}
    if ranks != {settings.rank} or not widths >= {settings.hidden}:
        raise ModelError(
            f"{file} holds adapters of rank {sorted(ranks)} and heads of width {sorted(widths)}, its"
            f" {ABOUT} says rank {settings.rank} and width {settings.hidden}: the folder is damaged"
        )


def settings_of(about: Json, file: Path) -> ModelSettings:
    """Return what a description says the model was built from; ModelError: nothing that can be, in `file`."""
    return _checked(ModelSettings, about.get("architecture"), file)


def decisions_to_json(questions: QuestionSet, decisions: Decisions) -> Json:
    """Return what agentps.json has of a model's decisions."""
    names = (one.name for one in questions.all)
    return {name: made.model_dump(mode="json") for name, made in zip(names, decisions, strict=True)}


def decisions_of(about: Json, questions: QuestionSet, file: Path) -> Decisions:
    """Return what a description says of how its model decides; ModelError: nothing that can be, in `file`."""
    made = [_checked(QuestionDecision, about["decisions"].get(one.name), file) for one in questions.all]
    for question, one in zip(questions.all, made, strict=True):
        count = len(question.answers)
        if not 0 <= one.looked_for < count or len(one.cut or question.answers) != count:
            raise ModelError(
                f"{file} decides on other answers to {question.name!r} than there are: it is damaged"
            )
    return tuple(made)


def fill(folder: Path, built: Built, task: Task, settings: ModelSettings) -> AgentPSModel:
    """`load`, into a model that was built already. Raises ModelError as `load`."""
    about = read_about(folder)
    if {one.name: list(one.answers) for one in built.questions.all} != about["questions"]:
        raise ModelError(
            f"{folder / TASK} asks other questions than the model was trained on"
            f" {first_of(about['questions'])}: restore the file, or train again"
        )
    if built.base.fingerprint != about["base_fingerprint"]:
        raise ModelError(
            f"{folder} was trained on another {settings.base} than this one (fingerprint"
            f" {about['base_fingerprint'][:12]}, here {built.base.fingerprint[:12]}): use those weights"
        )
    load_weights(built.model, folder / WEIGHTS)
    built.model.eval()
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update((folder / TASK).read_bytes())
    digest.update((folder / WEIGHTS).read_bytes())
    decisions = decisions_of(about, built.questions, folder / ABOUT)
    return AgentPSModel(folder, task, settings, built, about, decisions, digest.hexdigest())


class _Description(BaseModel):
    """What a finished model's description has to say beside its architecture."""

    questions: dict[str, list[str]]
    base_fingerprint: str
    best_epoch: int
    precision: str
    decisions: dict[str, Any]


def _checked(kind: type[Checked], value: object, file: Path) -> Checked:
    """Return what a description holds; ModelError: it is not of this kind."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part)[:80] for part in fault["loc"])
        raise ModelError(
            f"{file} describes no model ({place or 'it'}: {fault['msg']}): the folder is damaged"
        ) from error


def read_about(folder: Path, name: str = ABOUT) -> Json:
    """Read the description of a finished model, or of a merged one (`MERGED`).

    ModelError: no such file, no JSON, none of a model, or training has not ended.
    """
    file = folder / name
    checksums.check(file)
    try:
        about = read_json(file)
    except FileNotFoundError as error:
        what, how = ("model", "RUN --out") if name == ABOUT else ("merged model", "... --merge")
        remedy = f"`selftrain agentps train {how} DIR` makes one"
        if name == ABOUT and (folder / MERGED).exists():
            remedy = (
                "it is a merged checkpoint: serve it with vLLM and give --server, or open what was merged"
            )
        raise ModelError(f"{folder} holds no {what}: it has no {name}; {remedy}") from error
    except NotADirectoryError as error:  # manifest and model the other way round
        raise ModelError(f"{folder} is a file; expected the folder of a model: name that") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}): the folder is damaged") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ModelError(f"{file} has not the format {FORMAT}: it is of another version of selftrain")
    if not about.get("finished"):
        raise ModelError(f"the training of {folder} has not ended: start the same command again, it goes on")
    _checked(_Description, about, file)
    return about


def merge_adapters(trained_model: AgentPSModel, out: Path) -> None:
    """Write a whole checkpoint, the adapters multiplied into the base; the model loses them.

    The language part is one that transformers and vLLM load by themselves; answer_heads/ holds what they do
    not know. What was merged from the same model already stays, and decides by the model's rules of now.
    ModelError: `out` holds something else.
    """
    if is_merged(trained_model.folder, out):
        merged = read_about(out, MERGED)
        if (now := merged | trained_model.about) != merged:
            checksums.write_json(out / MERGED, now)
        return
    out = out.resolve()
    part = out.with_name(f"{out.name}.part")  # a whole checkpoint or none, whenever this is killed
    built = trained_model.built
    with atomic.writing(out):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        built.model.language = merge(built.model.language)
        built.base.write(built.model.language, part)
        built.collator.reader.save(part)
    _write(part / HEADS, {name: one.detach() for name, one in built.model.heads.state_dict().items()})
    dump_task(trained_model.task, part / TASK)
    checksums.note_written(part / TASK)
    more = {
        "merged": True, "answer_id": built.model.answer_id,
        "decisions": decisions_to_json(built.questions, trained_model.decisions),
    }  # fmt: skip
    checksums.write_json(part / MERGED, trained_model.about | more)
    with atomic.writing(out):
        part.replace(out)
        atomic.sync_folder(out.parent)


def check_out(out: Path, *, trained: bool = False) -> None:
    """Refuse to write over the files of a run, of a model unless it is being trained, or of people.

    ModelError: what lies there would be lost.
    """
    run = RunFolder(out).recipe_path.exists()
    if run or (not trained and (out / ABOUT).exists()):
        raise ModelError(
            f"{out} is the folder of a {'run' if run else 'model'}, whose own files would be lost: give"
            " another --out"
        )
    there = [name for name in _WRITTEN if (out / name).exists()]
    # written before any of those
    begun = (RECIPE,) if trained else (METRICS, f"{VALIDATION}.part")
    if there and not any((out / name).exists() for name in begun):
        raise ModelError(
            f"{out} holds {first_of(there)}, which this did not write and which would be lost: give --out a"
            " folder of its own"
        )


def is_merged(model: Path, out: Path) -> bool:
    """Return whether `out` holds what was merged from the model in a folder, whatever its rules were then.

    ModelError: it holds something else, or will, as the model lies in it.
    """
    if model.resolve().is_relative_to(out.resolve()):
        raise ModelError(f"{out} is where the model itself lies: give --merge a folder of its own")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if (out / MERGED).exists() and (model / ABOUT).exists():
        merged, about = read_about(out, MERGED), read_about(model)
        if merged | about == merged | {"decisions": about["decisions"]}:
            return True
    raise ModelError(f"{out} is not empty: give --merge a folder of its own")


# ---- trained weights, and a training in progress --------------------------------------------------------


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name."""
    wanted = set(trained_names(model))
    return {name: parameter for name, parameter in model.named_parameters() if name in wanted}


def save_weights(model: nn.Module, file: Path, *, write: bool = True) -> None:
    """Write the trained weights as safetensors; of shards every process gives its own, one may `write`."""
    tensors = whole(trained(model), keep=write)
    if write:
        _write(file, tensors)


def load_weights(model: nn.Module, file: Path) -> None:
    """Put the weights of `save_weights` into a model of the same settings; ModelError: they do not fit."""
    fill_weights(trained(model), read_tensors(file)[0], file)


def save_training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    identity: str,
    file: Path,
    *,
    write: bool = True,
) -> None:
    """Write weights, the optimizer's moments and where training stands, atomically.

    One file of what is trained, in whole tensors: any number of processes goes on from it, with shards or
    without. accelerate's `save_state` would write every frozen weight with them, and leave pickles, which run
    whatever somebody put into them. `identity` says what is trained on what; another training cannot go on
    from here. Of shards every process gives its own, one may `write`.
    """
    tensors: dict[str, Tensor] = {f"weight/{name}": one for name, one in trained(model).items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"moment/{number}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    tensors = whole(tensors, keep=write)
    if not write:
        return
    results = [one._replace(parts={}) for one in state.results]
    progress = {"step": state.step, "identity": identity, "results": results}
    _write(file, tensors, {"progress": json.dumps(progress)})


def load_training(
    model: nn.Module, optimizer: torch.optim.Optimizer, file: Path, identity: str
) -> TrainingState:
    """Put everything back as `save_training` found it; a file that is not there is a training's beginning.

    ModelError: the file is damaged, or of another training.
    """
    if not file.exists():
        return TrainingState()
    tensors, metadata = read_tensors(file)
    progress = _progress(metadata, file, identity)
    weights, moments = dict[str, Tensor](), defaultdict[int, dict[str, Tensor]](dict)
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "weight":
            weights[rest] = tensor
        else:
            number, _, key = rest.partition("/")
            moments[int(number)][key] = tensor
    fill_weights(trained(model), weights, file)
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    laid = {
        place: {key: laid_like(one, parameters[place]) for key, one in found.items()}
        for place, found in moments.items()
    }
    optimizer.load_state_dict(optimizer.state_dict() | {"state": laid})
    return TrainingState(progress["step"], tuple(EpochResult(*one) for one in progress["results"]))


def check_training(file: Path, identity: str) -> None:
    """Refuse, with a ModelError, to go on in a folder that holds another training; raises as `load_training`.

    Before anything is written there: what the folder says of its training must stay to be restored.
    """
    if file.exists():
        with _opened(file) as opened:
            _progress(opened.metadata() or {}, file, identity)


def _progress(metadata: Mapping[str, str], file: Path, identity: str) -> Json:
    """Return how far a training is; ModelError: the file does not say it, or is of another one."""
    try:
        progress = dict(json.loads(metadata.get("progress", "{}")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{file} does not say how far training is ({error}): remove it to begin again"
        ) from error
    if progress.get("identity") != identity:
        raise ModelError(
            f"{file.parent} holds a training of other posts or settings: give another --out, or restore the"
            " recipe and the data that it was begun with"
        )
    return progress


def fill_weights(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], file: Path) -> None:
    """Put the tensors of a file into parameters; ModelError: they do not fit."""
    found = {name: tuple(one.shape) for name, one in tensors.items()}
    wanted = {name: tuple(one.shape) for name, one in parameters.items()}
    if found != wanted:
        names = sorted(found.keys() | wanted.keys())
        differing = [name for name in names if found.get(name) != wanted.get(name)]
        raise ModelError(
            f"{file} holds weights of another architecture: {len(differing)} of {len(wanted)} differ,"
            f" {differing[0]} first (found {found.get(differing[0])}, expected {wanted.get(differing[0])})."
            " Use the base model, task and recipe that it was trained with"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(laid_like(tensors[name], parameter))


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    ready = {name: one.cpu().contiguous() for name, one in tensors.items()}
    size = sum(one.numel() * one.element_size() for one in ready.values())
    with atomic.replacing(file, size) as part:
        save_file(ready, part, metadata={"format": "pt", **(metadata or {})})
        checksums.note(file.parent, {file.name: checksums.digest_of(part)})


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and header of a file; ModelError: it cannot be read."""
    checksums.check(file)
    with _opened(file) as opened:
        return {name: opened.get_tensor(name) for name in list(opened.keys())}, opened.metadata() or {}


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a file of tensors, of which none is read yet; ModelError: it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{file} cannot be read as safetensors ({error}): expected the weights of a trained model."
            " Restore the file, or train again"
        ) from error

"""The run folder: written atomically, read back to resume, never half a round.

    runs/NAME/
    ├── recipe.toml          as resolved
    ├── environment.json     versions, devices, seed, git, what the posts and the backbone were
    ├── posts.jsonl          each post's split and digest, to tell which are others when the run goes on
    ├── quarantine.jsonl     rows, duplicates and posts left out, each with its reason
    ├── trust.json           the agents on posts of known label, before the last round's candidates
    ├── rounds/0003/         candidates.jsonl, verdicts.jsonl, scores.jsonl, model.safetensors, metrics.json
    │                        and human.jsonl where people were asked: their labels that the round used
    ├── best -> rounds/0003  moved in one step; rolling back leaves it where it is
    ├── report.html          the whole run on one page, see `selftrain.report`
    ├── tensorboard/         one event file a round; mlflow.json beside it where MLflow is told
    ├── review.sqlite        what people are asked to review, and what they said, see `review.ledger`
    ├── checksums.json       the SHA-256 of the other files, see `checksums`
    └── grown.jsonl          labels, people's labels and accepted pseudo-labels, with their provenance

`metrics.json` is written last: a round without one did not happen and is done again. Everything else that
resuming needs (`best`, `grown.jsonl`, which posts were seen) follows from the finished rounds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tomli_w

from agents.errors import JudgmentError
from agents.judgment import Verdict
from selftrain._util.files import check_regular, read_json
from selftrain._util.object_urls import refuse
from selftrain._util.toml_sections import flatten
from selftrain._util.types import Json
from selftrain.errors import RunMismatchError, RunStateError, StorageError
from selftrain.store import atomic, checksums, locks

T = TypeVar("T")

HUMAN, POSTS, REVISED = "human.jsonl", "posts.jsonl", "revised.jsonl"
MODEL = "model.safetensors"


class PostDigest(NamedTuple):
    """What a post is to a run: a line of posts.jsonl."""

    id: str
    split: str  # "labelled", "validation", "pool" or "test"
    digest: str  # of its text and label, 16 hex digits
    content: str = ""  # of its text and pictures; empty in runs of earlier versions


def text_digest(text: str, label: str | None = None) -> str:
    """Return the digest of a post's text, and of the label where it has one, as posts.jsonl keeps it."""
    return hashlib.sha256(repr((text, label)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class RunEnvironment:
    """What a run, or a labelling, was made with: the content of environment.json."""

    recipe: str  # the recipe's file name; empty for a run made in Python
    task: str  # the task's name
    identity: Mapping[str, str]  # what must not change between starts: digests of posts and backbone
    classes: tuple[str, ...]  # the task's; of a run the positive one first. Empty where the file names none
    simulated: bool  # whether the agents' answers are drawn from known labels
    pool: int  # posts in the pool; 0 for a labelling
    agents: Mapping[str, Any]  # what answers and how
    record: Mapping[str, Any]  # the whole file, for pages that list it

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RunEnvironment:
        """Return the environment of a record; a labelling's has fewer entries."""
        identity, classes = record.get("identity", {}), record.get("classes") or {}
        named = classes.get("all", ())
        return cls(
            recipe=record.get("recipe") or "",
            task=identity.get("task", ""),
            identity=identity,
            classes=tuple(named),
            simulated=bool(record.get("simulated")),
            pool=record.get("splits", {}).get("pool", 0),
            agents=record.get("agents") or {},
            record=record,
        )


@dataclass(frozen=True, slots=True)
class HumanLabel:
    """A label that people gave: a line of human.jsonl."""

    post_id: str  # of a pool post
    label: str  # a class name
    reviewers: tuple[str, ...]  # who decided, the one whose label counts first
    contested: bool = False  # whether two reviewers gave different labels
    batch: str = ""  # the batch of the review ledger that the post was drawn for
    inclusion: float = 1.0  # with which probability it was drawn, in [0, 1]
    machine_label: str = ""  # what classifier and agents together would have given it

    def to_json(self) -> Json:
        """Return a record of JSON values."""
        return {
            "id": self.post_id, "label": self.label, **self.provenance(),
        }  # fmt: skip

    def provenance(self) -> Json:
        """Return where the label comes from, as grown.jsonl has it."""
        return {
            "reviewers": list(self.reviewers), "contested": self.contested, "batch": self.batch,
            "inclusion": self.inclusion, "machine_label": self.machine_label,
        }  # fmt: skip

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> HumanLabel:
        """Return the label of a record.

        Raises:
            KeyError, TypeError: The record is incomplete.
        """
        return cls(
            record["id"], record["label"], tuple(record["reviewers"]), record["contested"], record["batch"],
            record["inclusion"], record["machine_label"],
        )  # fmt: skip


class RunFolder:
    """One run's folder. Reading needs no lock; writing happens inside `locked()`.

    What is read and is not there, or is not what it should be, is a RunStateError that names the file, in a
    file of lines the line, and what to do.
    """

    def __init__(self, path: Path | str, *, kept_at: str = "") -> None:
        refuse(path)
        self.path = Path(path)
        self._kept_at = kept_at  # a mirror's address

    @property
    def payer(self) -> str:
        """Under which name the run pays for answers: where it is kept, whichever machine works on it."""
        return self._kept_at or str(self.path.resolve())

    # ---- opening ------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[RunFolder]:
        """Hold the folder for writing.

        Raises:
            RunBusyError: Another process holds it.
        """
        with atomic.writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        busy = f"another process works on the run {self.path}: wait for it to end, or give another --out"
        lock = locks.take(self.path / ".lock", busy)
        try:
            yield self
        finally:
            lock.release()

    def begin(
        self, recipe: Mapping[str, Any], environment: Json, posts: Iterable[PostDigest] | None = None
    ) -> None:
        """Write the recipe and environment of a new run, or check that this is the same run going on.

        `environment["identity"]` holds what must not change between starts; of the recipe `MAY_CHANGE` may.
        `posts` tells which posts differ where they do.

        Raises:
            RunMismatchError: The folder holds a run of another recipe, or of other posts.
        """
        self.check_recipe(recipe)
        if self.recipe_path.exists():
            before = self.environment().identity
            self._check_same(
                "identity", dict(before), compared(before, environment["identity"]),
                lambda: self.differing_posts(posts or ()),
            )  # fmt: skip
        for leftover in self.path.rglob(atomic.TEMPORARY):  # what a killed process left half written
            if leftover.is_symlink() or not leftover.is_dir():
                leftover.unlink(missing_ok=True)
        if not self.recipe_path.exists():
            if posts is not None:
                checksums.write_jsonl(self.path / POSTS, (one._asdict() for one in posts))
            checksums.write_json(self.path / "environment.json", environment)
        # last: a folder with a recipe.toml is a run
        checksums.write_text(self.recipe_path, tomli_w.dumps(without_none(recipe)))

    def check_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Refuse at once, before anything is computed, when the folder holds a run of another recipe.

        Raises:
            RunMismatchError: With every key that differs.
        """
        if self.recipe_path.exists():
            self._check_same("recipe", _comparable(self.recipe()), _comparable(recipe))

    def post_digests(self) -> Iterator[PostDigest]:
        """Yield what each post was when the run began; nothing where that is not known."""
        yield from read_typed(self.path / POSTS, lambda row: PostDigest(**row))

    def differing_posts(self, posts: Iterable[PostDigest]) -> str:
        """Say which posts are not what they were when the run began; empty where that is not known."""
        file, before = self.path / POSTS, {one.id: one for one in self.post_digests()}
        if not before:
            return ""
        since = datetime.fromtimestamp(file.stat().st_mtime).astimezone()
        kinds: dict[str, set[str]] = {
            "new": set(), "gone": {*before}, "in another split": set(), "of another text or label": set(),
            "with other pictures": set(),
        }  # fmt: skip
        for one in posts:
            earlier = before.get(one.id)
            kinds["gone"].discard(one.id)
            if earlier is None:
                kinds["new"].add(one.id)
            elif earlier.split != one.split:
                kinds["in another split"].add(one.id)
            elif earlier.digest != one.digest:
                kinds["of another text or label"].add(one.id)
            elif earlier.content not in ("", one.content):
                kinds["with other pictures"].add(one.id)
        told = []
        for kind, ids in kinds.items():
            some = ", ".join(map(repr, sorted(ids)[:5])) + (", ..." if len(ids) > 5 else "")
            told += [f"{len(ids):,} {kind} ({some})"] if ids else []
        return f"{', '.join(told) or 'the same, in another order'}, since {since:%Y-%m-%d %H:%M}"

    def _check_same(
        self, what: str, found: Json, expected: Json, differing_posts: Callable[[], str] = str
    ) -> None:
        differing = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
        if differing:
            told = {
                "policy": "the task's classes, positive, policy or roles are not what they were",
                "answers": "the files of agents.file or agents.files do not hold what they held",
                "prompts": "the files of vlm.prompts do not hold what they held",
            }
            if what == "identity" and {"posts", "contents"} & {*differing} and (posts := differing_posts()):
                differing = sorted({*differing, "posts"} - {"contents"})
                told["posts"] = posts
            lines = [
                f"  {k}: {told.get(k) or f'{found.get(k)!r} in the folder, {expected.get(k)!r} now'}"
                for k in differing
            ]
            raise RunMismatchError(
                f"{self.path} holds a run of another {what}; nothing was touched:\n"
                + "\n".join(lines)
                + "\nGive another --out, or the recipe and data that this run began with"
            )

    # ---- reading ------------------------------------------------------------------------------------

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.toml"

    def recipe(self) -> Json:
        """Return the resolved recipe."""
        checksums.check(self.recipe_path)
        try:
            check_regular(self.recipe_path)
            return tomllib.loads(self.recipe_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunStateError(
                f"{self.path} is not a run folder: it has no recipe.toml."
                " `selftrain run RECIPE --out DIR` makes one"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise RunStateError(
                f"{self.recipe_path} cannot be read ({error}): the run folder is damaged"
            ) from error

    def data_section(self) -> Json:
        """Return what the resolved recipe says of the data; RunStateError where it is not that of a run."""
        found = self.recipe().get("data")
        if not isinstance(found, dict) or not {"manifest", "task"} <= found.keys():
            raise RunStateError(
                f"{self.recipe_path} names no manifest and task, so {self.path} is not a run folder:"
                " `selftrain run RECIPE --out DIR` makes one"
            )
        return found

    def environment(self) -> RunEnvironment:
        """Return what the run was made with."""
        file = self.path / "environment.json"
        try:
            return RunEnvironment.from_json(self.read_json(file))
        except (KeyError, TypeError, AttributeError) as error:
            raise RunStateError(f"{file} is incomplete ({error!r}): the run folder is damaged") from error

    def class_names(self) -> tuple[str, ...]:
        """Return the task's classes, the positive one first; those of a labelling in its task's order."""
        self.recipe()  # no run folder: said before anything else
        classes = self.environment().classes
        if len(classes) < 2:
            raise RunStateError(
                f"{self.path / 'environment.json'} names no classes (found {list(classes)}): the folder is"
                " damaged"
            )
        return classes

    def round_path(self, number: int) -> Path:
        return self.path / "rounds" / f"{number:04d}"

    def finished(self) -> int:
        """Count the finished rounds, round 0 (the labels alone) included."""
        count = 0
        while (self.round_path(count) / "metrics.json").exists():
            count += 1
        return count

    def round_records(self) -> list[Json]:
        """Return metrics.json of every finished round, round 0 first; `rounds.finished_rounds` types it."""
        records: list[Json] = []
        gone, later = self.round_path(self.finished()), self.round_path(self.finished() + 1)
        if (later / "metrics.json").exists():
            raise RunStateError(
                f"{gone / 'metrics.json'} is gone, and there are later rounds: the run folder is damaged."
                f" Remove {gone} and the rounds after it, and give the run's command again"
            )
        for number in range(self.finished()):
            file = self.round_path(number) / "metrics.json"
            record = self.read_json(file)
            if record.get("round") != number or not isinstance(record.get("kept"), bool):
                raise RunStateError(f"{file} is not the record of its round: the run folder is damaged")
            records.append(record)
        return records

    def best_round(self) -> int:
        """Return the number of the last kept round."""
        kept = [record["round"] for record in self.round_records() if record["kept"]]
        if not kept:
            raise RunStateError(f"{self.path} has no finished round yet: start the run again, it goes on")
        return int(kept[-1])

    def verdicts(self, number: int) -> list[Verdict]:
        """Return the verdicts of a round, in the order of its candidates; none for round 0."""
        return list(read_typed(self.round_path(number) / "verdicts.jsonl", Verdict.from_json))

    def revised(self, number: int) -> list[Verdict]:
        """New verdicts of a round on posts of earlier rounds; empty where it gave none."""
        return list(read_typed(self.round_path(number) / REVISED, Verdict.from_json))

    def human_labels(self, number: int) -> list[HumanLabel]:
        """Return people's labels that a round was the first to use; none where it used none."""
        return list(read_typed(self.round_path(number) / HUMAN, HumanLabel.from_json))

    def read_json(self, file: Path) -> Json:
        """Read one JSON object of this folder, or raise a RunStateError that names the file."""
        checksums.check(file)
        try:
            value = read_json(file)
        except (OSError, ValueError) as error:
            raise RunStateError(f"{file} cannot be read ({error}): the run folder is damaged") from error
        if not isinstance(value, dict):
            raise RunStateError(
                f"{file} holds a {type(value).__name__}, expected an object: the folder is damaged"
            )
        return value

    # ---- writing ------------------------------------------------------------------------------------

    def open_round(self, number: int) -> Path:
        """Make an empty folder for round `number`; what an interrupted attempt left there is removed."""
        folder = self.round_path(number)
        with atomic.writing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        return folder

    def close_round(self, number: int, metrics: Json) -> None:
        """Make round `number` final. After this line a kill loses nothing of it."""
        folder, content = self.round_path(number), atomic.json_text(metrics).encode()
        checksums.note_round(self.path, folder, {"metrics.json": hashlib.sha256(content).hexdigest()})
        atomic.write_bytes(folder / "metrics.json", content)

    def publish(self, best: int, grown: Iterable[Json]) -> None:
        """Move `best` and replace `grown.jsonl`. Safe to repeat: both follow from the finished rounds."""
        checksums.write_jsonl(self.path / "grown.jsonl", grown)
        atomic.point(self.path / "best", f"rounds/{best:04d}")


MAY_CHANGE = {
    *(f"rounds.{key}" for key in ("max", "patience", "budget")),
    # where the model is served, how hard it is asked and what it may cost; not what it is asked
    *(f"vlm.{key}" for key in ("servers", "key_variable", "concurrency", "timeout", "retries", "patience")),
    *(f"vlm.{key}" for key in ("token_cap", "store", "database")),
    *(f"vlm.{role}.{key}" for role in ("reviewer", "user") for key in ("servers", "key_variable")),
    "agents.on_near_chance",
    # what was drawn stays drawn, and what a round used stands in its folder
    *(f"human.{key}" for key in ("budget", "per_round", "rule", "floor", "double_annotation_rate", "wait")),
    *(f"human.{key}" for key in ("source", "strategy", "servers", "model")),
    # who computes it changes no byte
    *(f"engine.{key}" for key in ("kind", "workers", "cpus", "gpus")),
}
"""Keys of a recipe that a run may change on its way."""


LATER = ("contents", "policy", "answers", "prompts")
"""Of a run's identity: what runs of earlier versions did not keep."""


def compared(before: Mapping[str, str], now: Mapping[str, str]) -> Json:
    """Return of an identity what can be held against that of a run."""
    return {key: value for key, value in now.items() if key in before or key not in LATER}


ADDED = {"data.pool_copies": "keep"}
"""Keys that recipes of earlier versions lack, and what runs of theirs did."""


def _comparable(recipe: Mapping[str, Any]) -> Json:
    """Return section.key -> value, without the keys that a run may change on its way."""
    found = ADDED | flatten(without_none(recipe))
    return {key: value for key, value in found.items() if key not in MAY_CHANGE}


def without_none(table: Mapping[str, Any]) -> Json:
    """Return a table without what is None: TOML has no null."""
    return {
        key: without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }


def read_typed(file: Path, read: Callable[[Json], T]) -> Iterator[T]:
    """Yield what each line of a file stands for; nothing where there is no such file."""
    if not file.exists():
        checksums.check(file)  # one that was written is missed
        return
    for number, record in enumerate(read_jsonl(file), 1):
        try:
            yield read(record)
        except (JudgmentError, KeyError, TypeError) as error:
            raise RunStateError(
                f"{file}, line {number} is not what it should be ({error}): the run folder is damaged"
            ) from error


def read_jsonl(file: Path) -> Iterator[Json]:
    """Yield the objects of a JSON lines file."""
    checksums.check(file)
    try:
        check_regular(file)
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise RunStateError(
                        f"{file}, line {number} is not JSON: the run folder is damaged"
                    ) from error
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror or error}") from error

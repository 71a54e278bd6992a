"""The folder's files, read; what is wrong with one is said as an error of the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from selftrain._util.types import Json
from selftrain.errors import ModelError, RunStateError
from selftrain.store.run_dir import read_jsonl


def read_object(file: Path) -> Json:
    """The JSON object in a file.

    Raises:
        ModelError: It is not there, or holds none.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(file) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}): the folder is damaged") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} holds no JSON object: the folder is damaged")
    return value


def read_lines(file: Path) -> Iterator[Json]:
    """The JSON objects of a file, one a line.

    Raises:
        ModelError: It is not there, or a line, whose number is told, is not JSON.
    """
    if not file.exists():
        raise _missing(file)
    try:
        yield from read_jsonl(file)
    except RunStateError as error:
        raise ModelError(str(error).replace("the run folder", "the folder")) from error


def _missing(file: Path) -> ModelError:
    return ModelError(
        f"there is no {file}: expected the folder of a trained model, or one that"
        " `selftrain agentps evaluate` wrote"
    )

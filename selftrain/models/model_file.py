"""The file of a trained model: safetensors, with what it is in a header of our own."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftrain._util.files import plain_number
from selftrain._util.types import Json
from selftrain.errors import RunStateError
from selftrain.store import atomic, checksums

if TYPE_CHECKING:
    from torch import Tensor


def write_model(file: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a model, whole or not at all; `format` in the header, which is JSON, names its kind."""
    from safetensors.torch import save

    ready = {name: tensor.contiguous() for name, tensor in tensors.items()}
    atomic.write_bytes(file, save(ready, {"selftrain": json.dumps(dict(header), default=plain_number)}))


def read_model(file: Path, formats: Collection[str]) -> tuple[dict[str, Tensor], Json]:
    """Read the tensors and the header of a model, its `format` taken out; RunStateError: it is none such."""
    tensors, header = _read(file, tensors=True)
    check_format(file, header.pop("format", None), formats)
    return tensors, header


def check_format(file: Path, found: object, formats: Collection[str]) -> None:
    """Raise RunStateError where the format found in a file is none of those expected."""
    if found not in formats:
        wanted = " or ".join(map(repr, formats))
        raise RunStateError(
            f"{file} has format {found!r}, expected {wanted}: it is no such model of selftrain, or one of"
            " another version. Give the right one, or train it again with this version"
        )


def read_format(file: Path) -> str:
    """Return which kind of model a file holds, "selftrain-lora-2" say; RunStateError: none, or damaged."""
    found = _read(file, tensors=False)[1].get("format")
    if not isinstance(found, str):
        raise RunStateError(f"{file} names no format in its header: it is no model of selftrain")
    return found


def _read(file: Path, *, tensors: bool) -> tuple[dict[str, Tensor], Json]:
    from safetensors import SafetensorError, safe_open

    checksums.check(file)
    try:
        with safe_open(file, "pt") as opened:
            header = json.loads((opened.metadata() or {}).get("selftrain", "{}"))
            if not isinstance(header, dict):
                raise ValueError(f"its header holds a {type(header).__name__}")  # noqa: TRY004, TRY301
            return {name: opened.get_tensor(name) for name in (opened.keys() if tensors else ())}, header
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise RunStateError(
            f"{file} cannot be read as a model ({error}): the run folder is damaged"
        ) from error

"""Weights by their contents: files checked against a pinned hash, modules hashed as they stand."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones.errors import WeightsError

_State = tuple[tuple[str, int, int], ...]


def check_file(path: Path, sha256: str, package: str) -> None:
    """Compare a file's full SHA-256 with the pinned one.

    Raises:
        WeightsError: the file is absent, or its contents are others.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; expected the weights of {package}. Reinstall {package}.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise WeightsError(
            f"{path}: SHA-256 {found}, expected {sha256}. The file is damaged or of another release: "
            f"reinstall {package}."
        )


class ModuleDigest:
    """SHA-256 of a module's tensors, names included; recomputed only when a tensor has changed.

    The live tensors are hashed, not the file: a module that was trained, or got adapters, is another
    backbone, and its rows must not be mixed with the old ones in a cache.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._state: _State = ()
        self._digest = ""

    def hexdigest(self) -> str:
        tensors = self._module.state_dict(keep_vars=True)
        state = tuple((name, tensor.data_ptr(), tensor._version) for name, tensor in tensors.items())
        if state != self._state:
            self._digest, self._state = _digest(tensors), state
        return self._digest


def _digest(tensors: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()

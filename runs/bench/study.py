"""What every study has: a file of figures, one JSON line each, that grows as they come.

A study that was stopped goes on: a figure that stands in the file already is not computed again.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from selftrain.errors import DataError

_VERSIONS = ("selftrain", "torch", "scikit-learn", "numpy", "transformers")


class Figure(NamedTuple):
    """One measured value."""

    study: str
    dataset: str
    method: str
    n: int
    seed: int
    metric: str
    value: float
    asked: str = ""  # how many posts may be asked about, where that is varied


class Figures:
    """The figures of a study, kept in memory and, where a file is given, in it.

    Raises:
        DataError: The file holds something else.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.figures: list[Figure] = list(_read(file)) if file is not None and file.exists() else []
        self._context = {
            "versions": {name: metadata.version(name) for name in _VERSIONS},
            "machine": ", ".join([platform.machine(), f"{os.cpu_count()} cores", *_card()]),
        }

    def has(
        self, study: str, method: str, n: int, seed: int, *, dataset: str | None = None, asked: str = ""
    ) -> bool:
        """Whether any figure of this method, n and seed is there; of one data set, where it is named."""
        wanted = (study, method, n, seed, asked)
        return any(
            (f.study, f.method, f.n, f.seed, f.asked) == wanted and dataset in (None, f.dataset)
            for f in self.figures
        )

    def add(self, figures: Sequence[Figure]) -> None:
        """Keep the figures of one method on one seed; written in one go, so a kill leaves all or none."""
        self.figures += figures
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(figure._asdict() | self._context) + "\n" for figure in figures)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def values(
        self, method: str, n: int, metric: str, *, dataset: str | None = None, asked: str = ""
    ) -> dict[int, float]:
        """Return seed -> value; of one data set, where it is named."""
        wanted = (method, n, metric, asked)
        return {
            f.seed: f.value
            for f in self.figures
            if (f.method, f.n, f.metric, f.asked) == wanted and dataset in (None, f.dataset)
        }

    def table(self, dataset: str | None = None) -> Iterator[str]:
        """One line a method, n and metric: mean ± sd over the seeds; of one data set, where it is named."""
        groups: dict[tuple[int, str, str], list[float]] = defaultdict(list)
        for figure in (one for one in self.figures if dataset in (None, one.dataset)):
            groups[figure.n, figure.metric, figure.method].append(figure.value)
        for (n, metric, method), values in groups.items():
            spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
            seeds = f"{len(values)} seed{'s' * (len(values) > 1)}"
            yield f"n={n:<6} {metric:<26} {method:<28} {fmean(values):.4f}{spread}  ({seeds})"


def _card() -> list[str]:
    """Return the GPU's name, where there is one and torch is loaded already."""
    torch = sys.modules.get("torch")
    return [torch.cuda.get_device_name()] if torch is not None and torch.cuda.is_available() else []


def seeds_of(text: str) -> list[int]:
    """Return the seeds of "0..9" or "0,3,5"."""
    first, dots, last = text.partition("..")
    return list(range(int(first), int(last) + 1)) if dots else [int(one) for one in text.split(",")]


def named(method: str, changes: Sequence[str]) -> str:
    """Return the name under which a method's figures are kept: with another recipe it is another method."""
    return " ".join([method, *changes])


def _read(file: Path) -> Iterator[Figure]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record: dict[str, Any] = json.loads(line)
            kept = {name: record[name] for name in Figure._fields if name != "asked"}
            yield Figure(**kept, asked=record.get("asked", ""))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}, line {number} is no figure ({error!r}): give another --json, or remove the line"
            ) from error

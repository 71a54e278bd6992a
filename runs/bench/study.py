"""What every study has: a file of figures, one JSON line each, that grows as they come.

A study that was stopped goes on: a figure that stands in the file already is not computed again. The seed
that was being written when it was killed is.
"""

from __future__ import annotations

import json
import math
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
_BEGINS = '{"study": '


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
        self._end: int | None = None  # of the whole groups in the file, where the last one was cut off
        self.figures: list[Figure] = []
        if file is not None and file.exists():
            *lines, last = file.read_bytes().decode(errors="replace").split("\n")
            # what was cut off has the beginning of a figure; all else is not ours to cut
            cut_off = bool(last) and last[: len(_BEGINS)] == _BEGINS[: len(last)]
            known = lines if cut_off or not last else [*lines, last]
            self.figures = [_read(line, f"{file}, line {at}") for at, line in enumerate(known, 1)]
            if cut_off:
                self._forget_the_last(lines)
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
        """Keep the figures of one method on one seed, in place of what a kill left of the last that were."""
        self.figures += figures
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(figure._asdict() | self._context) + "\n" for figure in figures)
        with self.file.open("a", encoding="utf-8") as file:
            if self._end is not None:
                file.truncate(self._end)
                self._end = None
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def _forget_the_last(self, lines: list[str]) -> None:
        """Leave out the seed whose writing a kill or a full disk cut off: it is measured again."""
        seeds = [one._replace(method="", metric="", value=0) for one in self.figures]
        last = seeds[-1] if seeds else None
        while seeds and seeds[-1] == last:
            seeds.pop()
        del self.figures[len(seeds) :]
        self._end = sum(len(line.encode()) + 1 for line in lines[: len(seeds)])

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


def numbers(text: str) -> list[int]:
    """Return the numbers of "0..9" or "0,3,5": the `type` of an option. Raises ValueError: something else."""
    first, dots, last = text.partition("..")
    return list(range(int(first), int(last) + 1)) if dots else [int(one) for one in text.split(",")]


def named(method: str, changes: Sequence[str]) -> str:
    """Return the name under which a method's figures are kept: with another recipe it is another method."""
    return " ".join([method, *changes])


def _check(value: object) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"value {value!r}, expected a number")


def _read(line: str, place: str) -> Figure:
    try:
        record: dict[str, Any] = json.loads(line)
        kept = {name: record[name] for name in Figure._fields if name != "asked"}
        _check(kept["value"])
        return Figure(**kept, asked=record.get("asked", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{place} is no figure ({error!r}): give another --json, or remove the line"
        ) from error

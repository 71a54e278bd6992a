"""A finished round's figures as TensorBoard scalars, for those who compare runs there.

runs/NAME/tensorboard/round-0003/ holds one event file; the step of every scalar is the round's number.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selftrain import atomic

Json = dict[str, Any]


def write_round(folder: Path, figures: Json) -> None:
    """Write the scalars of one round, in place of what an earlier attempt at it left.

    The events are written beside their place and then moved there: a round's folder is there whole or not
    at all.

    Args:
        folder: The run folder.
        figures: The content of the round's metrics.json.

    Raises:
        StorageError: The disk is full or refuses.
    """
    target = round_folder(folder, int(figures["round"]))
    part = target.with_name(f".{target.name}.part")  # no ".tmp": those are files
    try:
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        _write_events(part, figures)
        if target.exists():
            shutil.rmtree(target)
        part.replace(target)
        atomic.sync_folder(target.parent)
    except OSError as error:
        raise atomic.storage_error(target, None, error) from error


def round_folder(folder: Path, number: int) -> Path:
    """Where the events of round `number` lie."""
    return folder / "tensorboard" / f"round-{number:04d}"


def _write_events(folder: Path, figures: Json) -> None:
    from torch.utils import tensorboard

    writer: Any = tensorboard.SummaryWriter  # torch leaves it untyped
    with writer(log_dir=str(folder)) as events:
        for tag, value in scalars(figures):
            events.add_scalar(tag, value, global_step=int(figures["round"]))
    for file in folder.iterdir():
        with file.open("rb+") as written:
            os.fsync(written.fileno())


def scalars(figures: Json) -> Iterator[tuple[str, float]]:
    """Tag and value of all that is a number and known in this round."""
    for split in ("validation", "test"):
        yield from _numbers(split, figures.get(split) or {})
    for name in ("candidates", "consistent", "divergent"):
        chosen = {key: figures[name].get(key) for key in ("posts", "precision")}
        yield from _numbers(name, chosen)
    yield from _numbers("round", {key: figures.get(key) for key in ("kept", "theta", "grown", "seconds")})
    curve = figures.get("curve") or [{}]
    yield from _numbers("loss", curve[-1].get("loss") or {})


def _numbers(group: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, int | float):  # None: not known, or not of this round
            yield f"{group}/{key}", float(value)

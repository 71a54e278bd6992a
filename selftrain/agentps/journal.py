"""What training says while it goes: a bar, TensorBoard events, one line a step in losses.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

LOSSES = "losses.jsonl"


class Journal:
    """Written by one process; with no folder it is silent.

    Args:
        folder: Of the model. Steps from `step` on are written anew: they were not saved, and happen again.
        step: The next one.
        steps: Of all epochs.
        shown: Draw a bar.
    """

    def __init__(self, folder: Path | None, step: int, steps: int, shown: bool) -> None:
        self._bar: Any = tqdm(
            total=steps, initial=step, desc="training", unit="step", disable=not shown or folder is None
        )
        self._file: Any = None
        self._events: Any = None
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        _keep(folder / LOSSES, step)
        self._file = (folder / LOSSES).open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def step(self, number: int, losses: Sequence[float], rate: float) -> None:
        """Losses of each question, their weighted sum last; `rate` is the share of the peak learning rate."""
        self._bar.update(1)
        self._bar.set_postfix(loss=f"{losses[-1]:.3f}")
        if self._file is None:
            return
        self._file.write(json.dumps({"step": number, "loss": losses[-1], "parts": losses[:-1]}) + "\n")
        self._file.flush()
        self._events.add_scalar("training/loss", losses[-1], number)
        self._events.add_scalar("training/rate", rate, number)

    def epoch(self, number: int, figures: Mapping[str, Any], metric: str) -> None:
        """Figures on validation posts after an epoch, counted from 0."""
        if self._events is None:
            return
        self._bar.write(f"epoch {number + 1} | validation {metric} {figures[metric]:.4f}")
        for name, value in figures.items():
            if isinstance(value, int | float):
                self._events.add_scalar(f"validation/{name}", value, number)
        self._events.flush()

    def close(self) -> None:
        """End the bar and the files."""
        self._bar.close()
        if self._file is not None:
            self._file.close()
            self._events.close()


def _keep(file: Path, step: int) -> None:
    """Drop the lines of steps from `step` on, and a line that was cut off."""
    from selftrain.store import atomic

    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    atomic.write_text(file, "".join(lines[:step]))

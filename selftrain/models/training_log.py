"""What training shows while it goes on: a bar, and in a folder TensorBoard events and one line a step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from selftrain.store import atomic

LOSSES = "losses.jsonl"


class TrainingLog:
    """A context that is written to after every step and evaluation.

    In a `folder` it writes losses.jsonl and tensorboard/. Lines of steps from `step`, the next one, on are
    dropped: those steps were not saved, and happen again.
    """

    def __init__(
        self,
        steps: int,
        *,
        name: str = "training",
        folder: Path | None = None,
        step: int = 0,
        bar: bool = True,
    ) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(total=steps, initial=step, desc=name, unit="step", disable=not bar)
        self._file: Any = None
        self._events: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            file = folder / LOSSES
            folder.mkdir(parents=True, exist_ok=True)
            if file.exists():  # a last line that was cut off goes too
                kept = file.read_text(encoding="utf-8").splitlines(keepends=True)[:step]
                atomic.write_text(file, "".join(kept))
            self._file = file.open("a", encoding="utf-8")
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def step(self, number: int, loss: float, parts: Mapping[str, float], rate: float) -> None:
        """Log step `number`, from 0 over all epochs: its loss and parts, and the rate as a share of its peak.

        losses.jsonl has the parts without their names, in their order.
        """
        self._bar.update(1)
        self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if self._file is not None:
            self._file.write(json.dumps({"step": number, "loss": loss, "parts": list(parts.values())}) + "\n")
            self._file.flush()
            self._events.add_scalar("training/loss", loss, number)
            self._events.add_scalar("training/rate", rate, number)

    def evaluation(self, epoch: int, step: int, metrics: Mapping[str, Any], metric: str) -> None:
        """Log validation metrics in or after an epoch, from 1, after `step` steps; `metric` counts."""
        if self._events is None:
            return
        told = [f"{name} {metrics[name]:.4f}" for name in dict.fromkeys((metric, "auc")) if name in metrics]
        self._bar.write(f"epoch {epoch}, step {step:,} | validation {', '.join(told)}")
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._events.add_scalar(f"validation/{name}", value, step - 1)
        self._events.flush()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()
            self._events.close()

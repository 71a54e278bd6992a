"""Finished rounds told to the tools that draw curves: TensorBoard always, MLflow where an address is set."""

from __future__ import annotations

from selftrain._util.types import Json
from selftrain.report import mlflow_tracking, tensorboard
from selftrain.report.status import why_stopped
from selftrain.store.run_dir import RunFolder


def tell(folder: RunFolder, figures: Json, *, fresh: bool) -> None:
    """Tell one round, once.

    Args:
        folder: The run folder, in which the round is finished.
        figures: The content of the round's metrics.json.
        fresh: Whether this process finished the round. One that an earlier start finished is told only if
            that start was killed before it could be.

    Raises:
        StorageError: The disk is full or refuses.
    """
    number = int(figures["round"])
    if fresh or not tensorboard.round_file(folder.path, number).exists():
        tensorboard.write_round(folder.path, figures)
    mlflow_tracking.tell_rounds(folder, number)


def close(folder: RunFolder) -> None:
    """This process is done with the run, which has a finished round, however it ended."""
    mlflow_tracking.close(folder, finished=why_stopped(folder) is not None)

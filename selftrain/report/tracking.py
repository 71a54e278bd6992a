"""Finished rounds told to the tools that draw curves: TensorBoard always, MLflow where an address is set."""

from __future__ import annotations

from selftrain.report import mlflow_tracking, tensorboard
from selftrain.report.status import why_stopped
from selftrain.rounds import RoundResult
from selftrain.store.run_dir import RunFolder


def log_round(folder: RunFolder, finished: RoundResult, *, fresh: bool) -> None:
    """Log one round, once.

    Args:
        folder: The run folder, in which the round is finished.
        finished: The round.
        fresh: Whether this process finished the round. One that an earlier start finished is logged only if
            that start was killed before it could be.

    Raises:
        StorageError: The disk is full or refuses.
    """
    if fresh or not tensorboard.round_file(folder.path, finished.number).exists():
        tensorboard.write_round(folder.path, finished)
    mlflow_tracking.tell_rounds(folder, finished.number)


def close(folder: RunFolder) -> None:
    """This process is done with the run, which has a finished round, however it ended."""
    mlflow_tracking.close(folder, finished=why_stopped(folder) is not None)

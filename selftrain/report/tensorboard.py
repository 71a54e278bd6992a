"""A run's figures as TensorBoard scalars: one run with curves over its rounds.

runs/NAME/tensorboard/ holds one event file a round; the step of every scalar is the round's number. The
files' names sort by round, which is the order in which TensorBoard reads them, and each stands for one run's
next stretch: `tensorboard --logdir runs` shows one run a folder. A round that is written again replaces its
file, so that resuming doubles no point.
"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

from selftrain.report.scalars import scalars
from selftrain.rounds import RoundResult
from selftrain.store import atomic


def write_round(folder: Path, finished: RoundResult) -> None:
    """Write the scalars of one round, in place of what an earlier attempt at it left.

    Args:
        folder: The run folder.
        finished: The round.

    Raises:
        StorageError: The disk is full or refuses; an older file of the round is as it was.
    """
    target = round_file(folder, finished.number)
    data = _events(finished)
    # TensorBoard reads every file with "tfevents" in its name: the half-written one has another
    part = target.with_name(f".round-{finished.number:04d}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
        atomic.sync_folder(target.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise atomic.storage_error(target, len(data), error) from error


def round_file(folder: Path, number: int) -> Path:
    """Where the events of round `number` lie."""
    return folder / "tensorboard" / f"events.out.tfevents.{number:010d}.round"


def _events(finished: RoundResult) -> bytes:
    """One event file: its version, then all scalars of the round in one event."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(finished)]
    step, now = finished.number, time.time()
    written = io.BytesIO()
    records = RecordWriter(written)
    records.write(Event(wall_time=now, step=0, file_version="brain.Event:2").SerializeToString())
    records.write(Event(wall_time=now, step=step, summary=Summary(value=values)).SerializeToString())
    return written.getvalue()

"""Log finished rounds where curves are drawn: to TensorBoard always, to MLflow where an address is set.

runs/NAME/tensorboard/ holds one event file a round; the step of every scalar is the round's number. The
files' names sort by round, which is the order in which TensorBoard reads them, so that it shows one run a
folder. A round that is written again replaces its file: resuming doubles no point.

MLflow has one run for a run folder. `mlflow.json` remembers it, and how many rounds it has; the round that is
being sent is written down beforehand, so that after a kill in between the next start asks the server what
arrived. A server that does not answer stops no run: it is a warning, and the rounds that it missed are sent
with the next one.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from selftrain._util.toml_sections import flatten
from selftrain._util.types import Json
from selftrain.errors import StorageError
from selftrain.report.status import why_stopped
from selftrain.rounds import RoundResult, finished_rounds
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder

Client = Any  # an MlflowClient, whose package is optional

ADDRESS = "MLFLOW_TRACKING_URI"
EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
LONGEST_VALUE = 500
"""Characters of a parameter that every server takes."""

# MLflow itself waits for minutes and reports home: neither belongs into a training run. What is set stays.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class TrackingWarning(UserWarning):
    """A round that MLflow did not get; the run goes on."""


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
    if fresh or not events_file(folder.path, finished.number).exists():
        write_events(folder.path, finished)
    send_rounds(folder, finished.number)


def close(folder: RunFolder) -> None:
    """Tell MLflow that this process is done with a run that has a finished round, however it ended."""
    address = os.environ.get(ADDRESS)
    sent = _sent(folder, address) if address else None
    if address and sent is not None:
        # KILLED: interrupted, and may go on
        status = "FINISHED" if why_stopped(folder) is not None else "KILLED"
        _with_server(address, "that the run ends", lambda c: c.set_terminated(sent.run_id, status))


def scalars(finished: RoundResult) -> Iterator[tuple[str, float]]:
    """Yield tag and value of all that is a number and known in this round."""
    groups: dict[str, Mapping[str, float | None]] = {"validation": finished.validation._asdict()}
    if finished.test is not None:
        groups["test"] = finished.test._asdict()
    for name, counts in finished.sets._asdict().items():
        groups[name] = {"posts": counts.posts, "precision": counts.precision}
    groups["pseudo_labels"] = finished.pseudo_labels._asdict()
    groups |= {f"agents/{role}": counts._asdict() for role, counts in finished.agents.items()}
    groups["cost"] = finished.cost._asdict() if finished.cost is not None else {}
    groups["round"] = {
        "kept": finished.kept, "theta": finished.theta, "grown": finished.grown, "seconds": finished.seconds,
    }  # fmt: skip
    groups["loss"] = finished.curve[-1].loss if finished.curve else {}
    for group, values in groups.items():
        for key, value in values.items():
            if value is not None:  # None: not known, or not of this round
                yield f"{group}/{key}", float(value)


# ---- TensorBoard ------------------------------------------------------------------------------------


def events_file(folder: Path, number: int) -> Path:
    """Return where the events of round `number` lie."""
    return folder / "tensorboard" / f"events.out.tfevents.{number:010d}.round"


def write_events(folder: Path, finished: RoundResult) -> None:
    """Write the scalars of one round, in place of what an earlier attempt at it left.

    Args:
        folder: The run folder.
        finished: The round.

    Raises:
        StorageError: The disk is full or refuses; an older file of the round is as it was.
    """
    target = events_file(folder, finished.number)
    # TensorBoard reads every file with "tfevents" in its name: half-written ones have another, and one that a
    # kill leaves behind is cleared as `atomic.TEMPORARY`
    half = target.with_name(f".round-{finished.number:04d}.tmp")
    try:
        half.parent.mkdir(parents=True, exist_ok=True)
        with half.open("wb") as opened:
            opened.write(_events(finished))
            opened.flush()
            os.fsync(opened.fileno())
        half.replace(target)
        atomic.sync_folder(target.parent)
    except OSError as error:
        raise atomic.storage_error(target, None, error) from error
    finally:
        half.unlink(missing_ok=True)


def _events(finished: RoundResult) -> bytes:
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as place:
        with SummaryWriter(place) as writer:
            for tag, value in scalars(finished):
                writer.add_scalar(tag, value, finished.number)
        (written,) = Path(place).iterdir()
        return written.read_bytes()


# ---- MLflow -----------------------------------------------------------------------------------------


class _Sent(NamedTuple):
    """The content of mlflow.json.

    Attributes:
        address: Fingerprint of the server's.
        run_id: MLflow's.
        rounds: How many it has.
        sending: The round that was being sent, and may have arrived; None where none was.
    """

    address: str
    run_id: str
    rounds: int = 0
    sending: int | None = None

    def to_json(self) -> Json:
        """Return the record."""
        sending = {} if self.sending is None else {"telling": self.sending}
        return {"address": self.address, "run_id": self.run_id, "told": self.rounds} | sending

    @classmethod
    def from_json(cls, record: Json) -> _Sent:
        """Return what a record says."""
        return cls(record["address"], record["run_id"], record["told"], record.get("telling"))


def send_rounds(folder: RunFolder, upto: int) -> None:
    """Send MLflow all finished rounds up to number `upto` that it has not got; nothing without an address.

    Raises:
        RunStateError: A damaged folder.
        StorageError: `mlflow.json` cannot be written.
    """
    address = os.environ.get(ADDRESS)
    sent = _sent(folder, address) if address else None
    if not address or (sent is not None and sent.rounds > upto):
        return
    _with_server(address, f"of round {upto}", lambda client: _send_missing(client, folder, address, upto))


def _with_server(address: str, what: str, send: Callable[[Client], object]) -> None:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError:
        _warn(
            f"{ADDRESS} is set, but MLflow is not installed: pip install 'selftrain[mlflow]', or unset it."
            " The run goes on without"
        )
        return
    try:
        send(MlflowClient(tracking_uri=address))
    except StorageError:  # ours, of mlflow.json
        raise
    except (MlflowException, OSError) as error:
        _warn(
            f"MLflow at {_without_secret(address)} could not be told {what}:"
            f" {str(error).replace(address, _without_secret(address))[:500]}. The run goes on"
        )


def _warn(message: str) -> None:
    warnings.warn(message, TrackingWarning, stacklevel=3)


def _send_missing(client: Client, folder: RunFolder, address: str, upto: int) -> None:
    sent = _sent(folder, address)
    if sent is None:
        sent = _Sent(_fingerprint(address), _new_run(client, folder))
        atomic.write_json(_file(folder), sent.to_json())
    elif client.get_run(sent.run_id).info.status != "RUNNING":
        client.update_run(sent.run_id, status="RUNNING")
    for finished in finished_rounds(folder)[sent.rounds : upto + 1]:
        doubtful = sent.sending == finished.number
        atomic.write_json(_file(folder), sent._replace(sending=finished.number).to_json())
        _send(client, sent.run_id, finished, doubtful=doubtful)
        sent = sent._replace(rounds=finished.number + 1, sending=None)
        atomic.write_json(_file(folder), sent.to_json())


def _send(client: Client, run_id: str, finished: RoundResult, *, doubtful: bool) -> None:
    """Send a round in one batch; if an earlier try may have arrived, only what is not there."""
    from mlflow.entities import Metric

    number, now = finished.number, int(time.time() * 1000)
    metrics = [Metric(_name(tag), value, now, number) for tag, value in scalars(finished)]
    if doubtful:
        metrics = [one for one in metrics if not _has(client, run_id, one.key, number)]
    # not mlflow.log_metrics: it sends to whatever server the process has set, which need not be this one
    client.log_batch(run_id, metrics=metrics)


def _has(client: Client, run_id: str, key: str, number: int) -> bool:
    return any(point.step == number for point in client.get_metric_history(run_id, key))


def _new_run(client: Client, folder: RunFolder) -> str:
    from mlflow.entities import Param

    name = os.environ.get(EXPERIMENT) or "selftrain"
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    environment = folder.environment()
    tags = {
        "task": environment.task,
        "simulated": str(environment.simulated),
        "git": str(environment.record.get("git")),
    }
    made = client.create_run(number, run_name=folder.path.resolve().name, tags=tags)
    params = [
        Param(_name(key), str(value)[:LONGEST_VALUE]) for key, value in flatten(folder.recipe()).items()
    ]
    client.log_batch(made.info.run_id, params=params)
    return str(made.info.run_id)


def _name(tag: str) -> str:
    """Return a name that MLflow takes; a role may be called anything."""
    return re.sub(r"[^\w./ -]", "_", tag, flags=re.ASCII)[:250]


def _file(folder: RunFolder) -> Path:
    return folder.path / "mlflow.json"


def _sent(folder: RunFolder, address: str) -> _Sent | None:
    """Read what this address got; None for another address than the last time's."""
    if not _file(folder).exists():
        return None
    sent = _Sent.from_json(folder.read_json(_file(folder)))
    return sent if sent.address == _fingerprint(address) else None


def _fingerprint(address: str) -> str:
    """Tell addresses apart in a file that others may read: an address can hold a password."""
    return hashlib.sha256(address.encode()).hexdigest()[:16]


def _without_secret(address: str) -> str:
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[1]))

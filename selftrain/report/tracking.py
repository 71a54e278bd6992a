"""Log finished rounds where curves are drawn: to TensorBoard always, to MLflow where an endpoint is set.

runs/NAME/tensorboard/ holds one event file a round; the step of every scalar is the round's number. The
files' names sort by round, which is the order in which TensorBoard reads them, so that it shows one run a
folder. A round that is written again replaces its file: resuming doubles no point.

MLflow has one run for a run folder, which `mlflow.json` remembers. Which rounds it has, it is asked itself:
whatever was killed when, the next round brings what is missing, and no point twice. A server that does not
answer stops no run: it is a warning, and the rounds that it missed are sent with the next one.
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

ENDPOINT = "MLFLOW_TRACKING_URI"
EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
MLFLOW = "mlflow.json"
LONGEST_VALUE = 500
"""Characters of a parameter that every server takes."""
LAST = "round/seconds"
"""The metric that is sent last: a server that has it of a round has the whole round."""

# MLflow itself waits for minutes and reports home: neither belongs into a training run. What is set stays.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class TrackingWarning(UserWarning):
    """A round that MLflow did not get; the run goes on."""


def log_round(folder: RunFolder, finished: RoundResult, *, fresh: bool) -> None:
    """Log a finished round, once.

    One that this process has not finished itself, `fresh`, is logged only if the start that did was killed
    before it could be.
    """
    if fresh or not events_file(folder.path, finished.number).exists():
        write_events(folder.path, finished)
    if finished.number + 1 == folder.finished():  # the newest brings all that MLflow has not got
        send_rounds(folder, finished.number)


def close(folder: RunFolder) -> None:
    """Set MLflow's status of a run that this process is done with, however it ended."""
    endpoint = os.environ.get(ENDPOINT)
    sent = _sent_to(folder, endpoint) if endpoint else None
    if endpoint and sent is not None:
        # KILLED: interrupted, and may go on
        status = "FINISHED" if why_stopped(folder) is not None else "KILLED"
        _with_server(endpoint, "the end of the run", lambda c: c.set_terminated(sent.run_id, status))


def scalars(finished: RoundResult) -> Iterator[tuple[str, float]]:
    """Yield tag and value of all that is a number and known in this round, `LAST` at the end."""
    splits = {"validation": finished.validation} | ({"test": finished.test} if finished.test else {})
    groups: dict[str, Mapping[str, float | None]] = {
        name: {key: value for key, value in split._asdict().items() if key != "confusion"}
        for name, split in splits.items()
    }
    for name, counts in finished.sets._asdict().items():
        groups[name] = {"posts": counts.posts, "precision": counts.precision}
    groups["pseudo_labels"] = finished.pseudo_labels._asdict()
    groups |= {f"agents/{role}": counts._asdict() for role, counts in finished.agents.items()}
    groups["cost"] = finished.cost._asdict() if finished.cost is not None else {}
    groups["loss"] = finished.curve[-1].loss if finished.curve else {}
    # of the prior, the positive class's, which is the last
    theta = next(reversed(list(finished.theta.values())), None)
    groups["round"] = {
        "kept": finished.kept, "theta": theta, "grown": finished.grown, "seconds": finished.seconds,
    }  # fmt: skip
    for group, values in groups.items():
        for key, value in values.items():
            if value is not None:  # None: not known, or not of this round
                yield f"{group}/{key}", float(value)


# ---- TensorBoard ------------------------------------------------------------------------------------


def events_file(folder: Path, number: int) -> Path:
    """Return where the events of round `number` lie."""
    return folder / "tensorboard" / f"events.out.tfevents.{number:010d}.round"


def write_events(folder: Path, finished: RoundResult) -> None:
    """Write the scalars of one round, in place of what an earlier attempt at it left in `folder`."""
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as place:
        with SummaryWriter(place) as writer:
            for tag, value in scalars(finished):
                writer.add_scalar(tag, value, finished.number)
        (written,) = Path(place).iterdir()
        atomic.write_bytes(events_file(folder, finished.number), written.read_bytes())


# ---- MLflow -----------------------------------------------------------------------------------------


class _Sent(NamedTuple):
    """The content of mlflow.json: the fingerprint of the server's endpoint, and MLflow's id of the run."""

    endpoint: str
    run_id: str

    @classmethod
    def from_json(cls, record: Json) -> _Sent:
        """Return the content of a record."""
        return cls(record.get("endpoint", ""), record.get("run_id", ""))


def send_rounds(folder: RunFolder, upto: int) -> None:
    """Send MLflow all finished rounds up to number `upto` that it lacks; nothing without an endpoint."""
    if endpoint := os.environ.get(ENDPOINT):
        _with_server(endpoint, f"round {upto}", lambda client: _send_missing(client, folder, endpoint, upto))


def _with_server(endpoint: str, what: str, send: Callable[[Client], object]) -> None:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError:
        _warn(
            f"{ENDPOINT} is set, but MLflow is not installed: pip install 'selftrain[mlflow]', or unset it."
            " The run goes on without"
        )
        return
    try:
        send(MlflowClient(tracking_uri=endpoint))
    except StorageError:  # ours, of mlflow.json
        raise
    except (MlflowException, OSError) as error:
        shown = _without_secret(endpoint)
        _warn(
            f"MLflow at {shown} did not get {what}:"
            f" {str(error).replace(endpoint, shown)[:500]}. The run goes on"
        )


def _warn(message: str) -> None:
    warnings.warn(message, TrackingWarning, stacklevel=3)


def _send_missing(client: Client, folder: RunFolder, endpoint: str, upto: int) -> None:
    from mlflow.entities import Metric

    sent = _sent_to(folder, endpoint)
    if sent is None:
        sent = _Sent(_fingerprint(endpoint), _new_run(client, folder))
        atomic.write_json(folder.path / MLFLOW, sent._asdict())
    elif client.get_run(sent.run_id).info.status != "RUNNING":
        client.update_run(sent.run_id, status="RUNNING")

    def steps(tag: str) -> set[int]:
        return {point.step for point in client.get_metric_history(sent.run_id, tag)}

    whole, now = steps(LAST), int(time.time() * 1000)
    for finished in finished_rounds(folder)[: upto + 1]:
        number = finished.number
        metrics = [Metric(_name(tag), value, now, number) for tag, value in scalars(finished)]
        if number in whole:
            continue
        if number in steps(metrics[0].key):  # a kill while it was sent: not all servers take a batch as one
            metrics = [one for one in metrics if number not in steps(one.key)]
        # not mlflow.log_metrics: it sends to whatever server the process has set, which need not be this one
        client.log_batch(sent.run_id, metrics=metrics)


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
    run_id = str(client.create_run(number, run_name=folder.path.resolve().name, tags=tags).info.run_id)
    recipe = flatten(folder.recipe())
    params = [Param(_name(key), str(value)[:LONGEST_VALUE]) for key, value in recipe.items()]
    client.log_batch(run_id, params=params)
    return run_id


def _name(tag: str) -> str:
    """Return a name that MLflow takes; a role may be called anything."""
    return re.sub(r"[^\w./ -]", "_", tag, flags=re.ASCII)[:250]


def _sent_to(folder: RunFolder, endpoint: str) -> _Sent | None:
    """Read which run this server has; None for another endpoint than the last time's."""
    file = folder.path / MLFLOW
    if not file.exists():
        return None
    sent = _Sent.from_json(folder.read_json(file))
    return sent if sent.endpoint == _fingerprint(endpoint) else None


def _fingerprint(endpoint: str) -> str:
    """Return what tells endpoints apart in a file that others may read: an endpoint can hold a password."""
    return hashlib.sha256(endpoint.encode()).hexdigest()[:16]


def _without_secret(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if "@" not in parts.netloc:
        return endpoint
    return urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[1]))

"""A run's figures told to MLflow, where a tracking address is set: one MLflow run for a run folder.

The steps are the rounds' numbers. `mlflow.json` in the run folder remembers the MLflow run and how many
rounds it was told; the round being told is written down beforehand, so that a kill in between doubles no
point: the next start asks the server what arrived. A server that does not answer stops no run: it is said
as a warning, and the rounds that it missed are told with the next one.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from selftrain._util.types import Json
from selftrain.errors import StorageError
from selftrain.report.scalars import scalars
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
    """A round that MLflow could not be told; the run goes on."""


def tell_rounds(folder: RunFolder, upto: int) -> None:
    """Tell MLflow all finished rounds up to number `upto` that it was not told; nothing without an address.

    Raises:
        RunStateError: A damaged folder.
        StorageError: `mlflow.json` cannot be written.
    """
    address = os.environ.get(ADDRESS)
    if not address or _record(folder, address).get("told", 0) > upto:
        return
    _with_server(address, f"of round {upto}", lambda client: _tell(client, folder, address, upto))


def close(folder: RunFolder, *, finished: bool) -> None:
    """Tell MLflow that this process is done with the run.

    Args:
        folder: The run folder.
        finished: Whether no further round follows; else it was interrupted and may go on.
    """
    address = os.environ.get(ADDRESS)
    record = _record(folder, address) if address else {}
    if address and "run_id" in record:
        status = "FINISHED" if finished else "KILLED"
        _with_server(address, "that the run ends", lambda c: c.set_terminated(record["run_id"], status))


def _with_server(address: str, what: str, tell: Callable[[Client], object]) -> None:
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
        tell(MlflowClient(tracking_uri=address))
    except StorageError:  # ours, of mlflow.json
        raise
    except (MlflowException, OSError) as error:
        _warn(
            f"MLflow at {_without_secret(address)} could not be told {what}:"
            f" {str(error).replace(address, _without_secret(address))[:500]}. The run goes on"
        )


def _warn(message: str) -> None:
    warnings.warn(message, TrackingWarning, stacklevel=3)


def _tell(client: Client, folder: RunFolder, address: str, upto: int) -> None:
    record = _record(folder, address)
    if "run_id" not in record:
        record |= {"address": _fingerprint(address), "run_id": _new_run(client, folder), "told": 0}
        atomic.write_json(_file(folder), record)
    elif client.get_run(record["run_id"]).info.status != "RUNNING":
        client.update_run(record["run_id"], status="RUNNING")
    for finished in finished_rounds(folder)[record["told"] : upto + 1]:
        number = finished.number
        doubtful = record.get("telling") == number
        atomic.write_json(_file(folder), record | {"telling": number})
        _send(client, record["run_id"], finished, doubtful=doubtful)
        record = {key: value for key, value in record.items() if key != "telling"} | {"told": number + 1}
        atomic.write_json(_file(folder), record)


def _send(client: Client, run_id: str, finished: RoundResult, *, doubtful: bool) -> None:
    """Send a round in one batch; if an earlier try may have arrived, only what is not there."""
    from mlflow.entities import Metric

    number, now = finished.number, _now()
    metrics = [Metric(_name(tag), value, now, number) for tag, value in scalars(finished)]
    if doubtful:
        metrics = [one for one in metrics if not _there(client, run_id, one.key, number)]
    client.log_batch(run_id, metrics=metrics)


def _there(client: Client, run_id: str, key: str, number: int) -> bool:
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
    params = [Param(_name(key), str(value)[:LONGEST_VALUE]) for key, value in _flat(folder.recipe())]
    client.log_batch(made.info.run_id, params=params)
    return str(made.info.run_id)


def _flat(recipe: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for section, value in recipe.items():
        if isinstance(value, dict):
            yield from ((f"{section}.{key}", item) for key, item in value.items())
        else:
            yield section, value


def _name(tag: str) -> str:
    """A name that MLflow takes; a role may be called anything."""
    return re.sub(r"[^\w./ -]", "_", tag, flags=re.ASCII)[:250]


def _now() -> int:
    import time

    return int(time.time() * 1000)


# ---- what was told ----------------------------------------------------------------------------------


def _file(folder: RunFolder) -> Path:
    return folder.path / "mlflow.json"


def _record(folder: RunFolder, address: str) -> Json:
    """What this address was told; empty for another address than the last time's."""
    if not _file(folder).exists():
        return {}
    record = folder.read_json(_file(folder))
    return record if record.get("address") == _fingerprint(address) else {}


def _fingerprint(address: str) -> str:
    """Tells addresses apart in a file that others may read: an address can hold a password."""
    return hashlib.sha256(address.encode()).hexdigest()[:16]


def _without_secret(address: str) -> str:
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[1]))

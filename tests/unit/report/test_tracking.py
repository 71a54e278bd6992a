"""Finished rounds in TensorBoard and MLflow: one run each, no point twice, whatever was killed when."""

from __future__ import annotations

import errno
import json
import os
import socket
from fnmatch import fnmatch

import pytest
from report_helpers import PLAIN, by_hand, figures

from selftrain.errors import StorageError
from selftrain.report import tracking
from selftrain.report.tracking import scalars
from selftrain.rounds import AgentCounts, Cost, RoundResult, finished_rounds
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder


def result(number, macro_f1, **more):
    curve = [
        {"epoch": 1, "macro_f1": 0.1, "loss": {"pn": 9.0}},
        {"epoch": 2, "macro_f1": 0.2, "loss": {"pn": 0.5}},
    ]
    agents = {"reviewer": AgentCounts(changed_mind=2)._asdict()}
    more = {"agents": agents, "cost": Cost(calls=7, seconds=1.5)._asdict(), "curve": curve} | more
    return RoundResult.from_json(figures(number, PLAIN, kept=True, macro_f1=macro_f1, **more))


@pytest.fixture
def folder(tmp_path):
    """A run folder with three finished rounds."""
    made = RunFolder(tmp_path / "runs" / "mine")
    environment = {"identity": {"task": "notices"}, "simulated": False, "git": None, "splits": {"pool": 9}}
    with made.locked():
        recipe = {
            "seed": 3,
            "rounds": {"max": 2, "patience": 3},
            "selection": {"reselect_divergent": True, "k": 4},
        }
        made.begin(recipe, environment)
        for number, score in enumerate((0.5, 0.625, 0.75)):
            (made.open_round(number) / "verdicts.jsonl").touch()
            made.close_round(number, result(number, score).to_json())
    return by_hand(made)


# ---- numbers ----------------------------------------------------------------------------------------


def test_every_known_number_has_a_name_and_what_is_not_known_has_none():
    told = dict(scalars(result(1, 0.5)))
    assert list(told)[-1] == tracking.LAST  # what has it has the whole round
    assert told["validation/macro_f1"] == 0.5
    assert told["loss/pn"] == 0.5  # the last epoch's
    assert told["agents/reviewer/changed_mind"] == 2
    assert told["cost/calls"] == 7
    assert told["round/kept"] == 1.0
    assert {"consistent/precision", "round/theta"} <= set(told)
    assert not {"consistent/precision", "round/theta"} & set(dict(scalars(result(0, 0.5))))


# ---- TensorBoard ------------------------------------------------------------------------------------


def curves(root):
    """Run name -> tag -> [(step, value)], as TensorBoard itself finds them under `root`."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(root))
    multiplexer.Reload()
    return {
        run: {
            tag: [(event.step, round(event.value, 6)) for event in multiplexer.Scalars(run, tag)]
            for tag in found["scalars"]
        }
        for run, found in multiplexer.Runs().items()
    }


def test_tensorboard_sees_one_run_with_curves_over_its_rounds(folder):
    for one in finished_rounds(folder):
        tracking.write_events(folder.path, one)
    ((name, tags),) = curves(folder.path.parent).items()
    assert name == "mine/tensorboard"
    assert tags["validation/macro_f1"] == [(0, 0.5), (1, 0.625), (2, 0.75)]
    assert tags["round/theta"] == [(1, 0.4), (2, 0.4)]


def test_a_round_written_again_replaces_its_points(folder):
    for score in (0.25, 0.75):
        tracking.write_events(folder.path, result(1, score))
    (tags,) = curves(folder.path.parent).values()
    assert tags["validation/macro_f1"] == [(1, 0.75)]
    assert len(list((folder.path / "tensorboard").iterdir())) == 1


def test_a_file_that_is_being_written_is_none_of_tensorboards(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        os, "fsync", lambda _handle: seen.extend(path.name for path in folder.path.glob("tensorboard/*"))
    )
    tracking.write_events(folder.path, result(0, 0.5))
    assert fnmatch(seen[0], atomic.TEMPORARY)  # what a kill leaves behind is cleared
    assert "tfevents" not in seen[0]


def test_a_full_disk_is_a_storage_error_and_leaves_the_older_file(folder, monkeypatch):
    tracking.write_events(folder.path, result(0, 0.5))
    before = tracking.events_file(folder.path, 0).read_bytes()

    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        tracking.write_events(folder.path, result(0, 0.75))
    assert tracking.events_file(folder.path, 0).read_bytes() == before
    assert len(list((folder.path / "tensorboard").iterdir())) == 1


def test_a_round_of_an_earlier_start_is_logged_only_if_it_was_not(folder, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking.write_events(folder.path, result(0, 0.125))
    rounds = finished_rounds(folder)
    tracking.log_round(folder, rounds[0], fresh=False)
    tracking.log_round(folder, rounds[1], fresh=False)
    (tags,) = curves(folder.path.parent).values()
    assert tags["validation/macro_f1"] == [(0, 0.125), (1, 0.625)]
    tracking.log_round(folder, rounds[0], fresh=True)
    (tags,) = curves(folder.path.parent).values()
    assert tags["validation/macro_f1"] == [(0, 0.5), (1, 0.625)]


# ---- MLflow -----------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A client of the file store to which the address points."""
    address = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=address)


def only_run(client):
    experiment = client.get_experiment_by_name("selftrain")
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def history(client, tag="validation/macro_f1"):
    points = client.get_metric_history(only_run(client).info.run_id, tag)
    return sorted((point.step, point.value) for point in points)


def test_mlflow_has_one_run_with_the_recipe_and_every_round_once(folder, server):
    for _ in range(2):  # the second time as after a restart
        for one in finished_rounds(folder):
            tracking.log_round(folder, one, fresh=False)
    assert history(server) == [(0, 0.5), (1, 0.625), (2, 0.75)]
    run = only_run(server)
    assert run.info.run_name == "mine"
    assert run.data.params["selection.k"] == "4"
    assert run.data.tags["task"] == "notices"
    assert run.info.status == "RUNNING"
    tracking.close(folder)
    assert only_run(server).info.status == "FINISHED"  # rounds.max is 2


def test_an_interrupted_run_says_so_and_goes_on_in_the_same_mlflow_run(folder, server):
    recipe = folder.recipe_path
    recipe.write_text(recipe.read_text().replace("max = 2", "max = 5"))
    tracking.send_rounds(folder, 1)
    tracking.close(folder)
    assert only_run(server).info.status == "KILLED"
    tracking.send_rounds(folder, 2)
    assert only_run(server).info.status == "RUNNING"
    assert history(server) == [(0, 0.5), (1, 0.625), (2, 0.75)]


@pytest.mark.parametrize("arrived", [0, 1, 5, None], ids=["nothing", "one number", "some", "all"])
def test_a_kill_while_a_round_is_sent_doubles_no_point(folder, server, monkeypatch, arrived):
    from mlflow.tracking import MlflowClient

    send = MlflowClient.log_batch

    class Killed(BaseException):
        """As if the process were gone."""

    def killed(client, run_id, metrics=(), **more):
        if metrics and metrics[0].step == 1:
            send(client, run_id, metrics=metrics[:arrived], **more)
            raise Killed
        send(client, run_id, metrics=metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", killed)
    with pytest.raises(Killed):
        tracking.send_rounds(folder, 2)
    monkeypatch.setattr(MlflowClient, "log_batch", send)
    tracking.send_rounds(folder, 2)
    for tag, _ in scalars(finished_rounds(folder)[1]):
        assert [step for step, _ in history(server, tag)].count(1) == 1, tag
    assert history(server) == [(0, 0.5), (1, 0.625), (2, 0.75)]
    assert history(server, "loss/pn") == [(0, 0.5), (1, 0.5), (2, 0.5)]


def test_a_server_that_is_not_there_is_a_warning_and_hears_everything_later(folder, server, monkeypatch):
    there = os.environ["MLFLOW_TRACKING_URI"]
    with socket.socket() as taken:  # bound, never listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        gone = f"http://someone:secret@127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", gone)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.warns(tracking.TrackingWarning, match="did not get round 1.*The run goes on") as said:
            tracking.send_rounds(folder, 1)
    assert "secret" not in str(said[0].message)
    assert not (folder.path / "mlflow.json").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there)
    tracking.send_rounds(folder, 2)
    assert history(server) == [(0, 0.5), (1, 0.625), (2, 0.75)]
    record = json.loads((folder.path / "mlflow.json").read_text())
    assert set(record) == {"endpoint", "run_id"}
    assert there not in json.dumps(record)


def test_without_an_endpoint_nothing_is_sent_and_without_mlflow_there_is_a_warning(folder, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking.send_rounds(folder, 2)
    tracking.close(folder)
    assert not (folder.path / "mlflow.json").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setitem(__import__("sys").modules, "mlflow.exceptions", None)
    with pytest.warns(tracking.TrackingWarning, match=r"selftrain\[mlflow\]"):
        tracking.send_rounds(folder, 2)


def test_a_role_of_any_name_becomes_a_name_that_mlflow_takes(folder, server):
    agents = {"<b>\n$": AgentCounts(label=3)._asdict()}
    folder.close_round(2, result(2, 0.75, agents=agents).to_json())
    tracking.send_rounds(folder, 2)
    assert history(server, "agents/_b___/label") == [(2, 3.0)]

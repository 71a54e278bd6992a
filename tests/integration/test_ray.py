"""The promise of `--ray`: on a real cluster of two nodes the same bytes, whoever is killed meanwhile."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from annotation_helpers import TASK
from model_server import ModelServer
from processes import Process
from ray_helpers import NotedPredictor, ends_at, raises
from serving_helpers import TextPredictor
from test_readme import blocks
from test_shared_answers import server, url  # noqa: F401 -- fixtures

from selftrain.cli import main
from selftrain.data.manifest import Tolerance
from selftrain.engine import on_ray
from selftrain.engine.on_ray import OnRay
from selftrain.errors import EngineError, ManifestError, QuarantineError, ServingError
from selftrain.rounds import finished_rounds
from selftrain.serving.row_stream import COMMIT_SECONDS
from selftrain.serving.streams import ModelAtWork, filter_posts
from selftrain.store.run_dir import RunFolder

HERE = Path(__file__).parent
pytestmark = pytest.mark.integration
ROWS = 4000
SMALL_NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core, each with a raylet of its own."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'selftrain[ray]'")
    from ray.cluster_utils import Cluster

    tests = HERE.parent
    before = os.environ.get("PYTHONPATH", "")
    # nodes give it to their workers, which open models of these tests
    os.environ["PYTHONPATH"] = f"{tests.parent}:{tests}"
    made = Cluster(initialize_head=True, head_node_args={**SMALL_NODE, "include_dashboard": False})
    made.other = made.add_node(**SMALL_NODE)
    made.wait_for_nodes()
    yield made
    made.shutdown()
    os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Posts that pass and do not, posts without a score, and rows that are none."""
    file = tmp_path_factory.mktemp("ray") / "posts.jsonl"
    with file.open("w") as lines:
        for n in range(ROWS):
            text = "fail" if n % 97 == 5 else f"0.{n * 7919 % 1000:03}"
            row = {"id": f"p{n}", "text": text, "more": "é" * (n % 40)}
            lines.write("{broken\n" if n % 89 == 7 else json.dumps(row, ensure_ascii=False) + "\n")
    return file


@pytest.fixture(scope="module")
def expected(source):
    """What one process makes of them."""
    sink = source.with_name("expected.jsonl")
    tally = go(source, sink)
    assert tally.rows == ROWS
    assert tally.failed == sum(n % 97 == 5 or n % 89 == 7 for n in range(ROWS))
    return tally, bytes_of(sink)


def bytes_of(sink):
    return sink.read_bytes(), sink.with_name(f"{sink.name}.quarantine.jsonl").read_bytes()


def go(source, sink, engine=None, *, seconds=0.0, gather=1, commit_seconds=COMMIT_SECONDS, **options):
    load = None if engine is None else partial(NotedPredictor, sink.with_name("notes.jsonl"), seconds, gather)
    work = ModelAtWork(predictor=TextPredictor(), engine=engine, load=load, max_pixels=1000, **options)
    limits = {"threshold": 0.5, "text_limit": 50, "commit_seconds": commit_seconds}
    return filter_posts(work, str(source), sink, **limits)


def notes(place):
    file = place / "notes.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_bytes_of_one_process(cluster, source, expected, tmp_path, workers):
    sink = tmp_path / "sink.jsonl"
    tally = go(source, sink, OnRay(cluster.address, workers), seconds=0.02, gather=workers)
    assert (tally, bytes_of(sink)) == expected
    assert len({one["node"] for one in notes(tmp_path)}) == workers
    assert os.getpid() not in {one["pid"] for one in notes(tmp_path)}


def meanwhile(condition, action):
    """Do something, in a thread, as soon as a condition holds."""

    def wait():
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def written(sink):
    """At least a few hundred rows have been through the model."""
    return sink.exists() and sink.stat().st_size > 20_000


def begun_by_raylets(cluster):
    """Process -> its name."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
    begun = [one for one in psutil.process_iter(["ppid", "cmdline"]) if one.info["ppid"] in raylets]
    return {one.pid: (one.info["cmdline"] or [""])[0] for one in begun}


@pytest.mark.parametrize("with_notes", [False, True], ids=["workers", "workers and what they note"])
def test_a_worker_that_is_killed_changes_nothing(cluster, source, expected, tmp_path, with_notes):
    sink = tmp_path / "sink.jsonl"

    def kill_both():
        names = begun_by_raylets(cluster) if with_notes else {}
        victims = [pid for pid, name in names.items() if name == "ray::_Notes"]
        assert len(victims) == with_notes
        for pid in [*victims, *(one["pid"] for one in notes(tmp_path))]:
            os.kill(pid, signal.SIGKILL)

    thread = meanwhile(lambda: written(sink) and len(notes(tmp_path)) == 2, kill_both)
    tally = go(source, sink, OnRay(cluster.address), seconds=0.3, gather=2, commit_seconds=0.0)
    thread.join()
    assert len(notes(tmp_path)) > 2, "others took their place"
    assert (tally, bytes_of(sink)) == expected


def test_a_node_that_is_lost_changes_nothing(cluster, source, expected, tmp_path):
    sink = tmp_path / "sink.jsonl"

    def on_both():
        return written(sink) and len({one["node"] for one in notes(tmp_path)}) == 2

    thread = meanwhile(on_both, lambda: cluster.remove_node(cluster.other, allow_graceful=False))
    tally = go(source, sink, OnRay(cluster.address), seconds=0.3, gather=2, commit_seconds=0.0)
    thread.join()
    cluster.other = cluster.add_node(**SMALL_NODE)
    cluster.wait_for_nodes()
    assert (tally, bytes_of(sink)) == expected


DRIVER = """
import sys
from pathlib import Path
from test_ray import go
from selftrain.engine import on_ray
from selftrain.engine.on_ray import OnRay
source, sink, address = sys.argv[1:]
print(go(Path(source), Path(sink), OnRay(address), seconds=0.1, commit_seconds=0.0))
"""


def test_where_the_driver_is_killed_the_same_command_goes_on(cluster, source, expected, tmp_path):
    sink = tmp_path / "sink.jsonl"
    words = ("-c", DRIVER, source, sink, cluster.address)
    progress = sink.with_name(f"{sink.name}.progress.json")
    place = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}:{HERE}"}}
    with Process(words, stdout=subprocess.DEVNULL, stderr=None, **place) as driver:
        deadline = time.monotonic() + 60
        while not (written(sink) and json.loads(progress.read_text())["tally"]["rows"]):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        driver.kill()
    done = json.loads(progress.read_text())["tally"]["rows"]
    assert 0 < done < ROWS
    tally = go(source, sink, OnRay(cluster.address))
    assert (tally, bytes_of(sink)) == expected
    # one process goes on with what workers began, too
    other = tmp_path / "other.jsonl"
    with pytest.raises(QuarantineError, match=r"line 6, id 'p5'"):
        go(source, other, OnRay(cluster.address), tolerance=Tolerance(20, None))
    assert 0 < len(bytes_of(other)[0]) < len(expected[1][0])
    assert (go(source, other), bytes_of(other)) == expected


def test_what_fails_on_a_worker_is_told_as_it_would_be_here(cluster, source, tmp_path):
    engine = OnRay(cluster.address)
    wrong = ServingError("no model there")
    work = ModelAtWork(predictor=TextPredictor(), engine=engine, load=partial(raises, wrong))
    with pytest.raises(ServingError, match="no model there"):
        filter_posts(work, str(source), tmp_path / "s", threshold=0.5, text_limit=50)
    other = tmp_path / "raise.jsonl"
    other.write_text('{"id": "a", "text": "raise"}\n')
    with pytest.raises(ArithmeticError, match="asked to fail") as failed:
        go(other, tmp_path / "t", engine)
    assert "serving_helpers.py" in failed.value.__notes__[0], "and where on the worker"
    with pytest.raises(ManifestError, match="No such file"):
        go(tmp_path / "none.jsonl", tmp_path / "u", engine)
    with pytest.raises(EngineError, match=r"a worker takes 64 CPUs .* \(1 CPUs, 0 GPUs; 1 CPUs, 0 GPUs\)"):
        go(source, tmp_path / "v", OnRay(cluster.address, cpus=64))


def test_posts_that_no_worker_survives_are_set_aside_and_nothing_else_is(cluster, tmp_path):
    """One in the midst, and the last of all: behind it comes no block that could tell of it."""
    deadly = (100, 199)
    for name, word in (("posts", "crash"), ("tame", "fail")):
        rows = [{"id": f"p{n}", "text": word if n in deadly else "0.9"} for n in range(200)]
        write_table(tmp_path / f"{name}.jsonl", rows)
    tally = go(tmp_path / "posts.jsonl", tmp_path / "there.jsonl", OnRay(cluster.address))
    tame = go(tmp_path / "tame.jsonl", tmp_path / "here.jsonl")
    assert tally[:3] == tame[:3] == (200, 198, 2)
    (there, left), (here, failed) = (bytes_of(tmp_path / f"{name}.jsonl") for name in ("there", "here"))
    assert there == here
    left, failed = ([json.loads(line) for line in one.splitlines()] for one in (left, failed))
    assert [one["line"] for one in left] == [101, 200]
    assert [one | {"reason": ""} for one in left] == [one | {"reason": ""} for one in failed]
    assert {one["reason"] for one in left} == {"2 workers died of it alone: of too little memory, as a rule"}


def test_work_that_no_worker_survives_and_that_cannot_be_left_out_ends_the_command(cluster, monkeypatch):
    with monkeypatch.context() as impatient:  # not more so than a busy machine takes to start a worker
        impatient.setattr(on_ray, "_WITHOUT_RESULT", 20.0)
        source, stage = partial(iter, [0, 1, 2]), partial(partial, ends_at, 1)
        with OnRay(cluster.address, 1).map(source, stage) as found:
            assert next(found) == 0
            with pytest.raises(EngineError, match=r"Ray gave up: .*no progress"):
                next(found)


def write_table(file, rows):
    """Rows as one of the forms that manifests have."""
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".csv":
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, ["id", "text", "images"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row | {"images": ";".join(row.get("images", []))} for row in rows)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv"])
def test_the_command_labels_with_a_run_as_one_process_does(cluster, small_run, tmp_path, form, capsys):
    """Posts of a real run with their pictures, a row that is none, and an id that comes again."""
    home = small_run.parent / "data"
    rows = [json.loads(line) for line in (home / "manifest.jsonl").read_text().splitlines()]
    manifest = home / f"for-ray.{form}"
    write_table(
        manifest, [*rows, rows[3] | {"text": "again"}, rows[4] | {"id": "x", "text": "", "images": []}]
    )
    words = ["predict", str(small_run), str(manifest), "--max-bad-share", "1", "--out"]
    assert main([*words, str(tmp_path / "here.csv")]) == 0
    told = capsys.readouterr().out.replace("here", "there")
    one = ["--ray-workers", "1"]  # there is one block: a second worker would be started in vain
    assert main([*words, str(tmp_path / "there.csv"), "--ray", cluster.address, *one]) == 0
    assert capsys.readouterr().out == told
    assert bytes_of(tmp_path / "there.csv") == bytes_of(tmp_path / "here.csv")
    reasons = [json.loads(line)["reason"] for line in bytes_of(tmp_path / "here.csv")[1].splitlines()]
    assert [reason[:7] for reason in reasons] == ["id stan", "neither"]


def test_a_run_has_its_features_from_workers_and_ends_with_the_same_bytes(
    cluster, small_run, tmp_path, capsys
):
    recipe, runs = small_run.parent / "small.toml", {}
    for name, more in {"here": [], "there": ["--ray", cluster.address, "--metrics", "0"]}.items():
        cache = f"backbone.cache={tmp_path / name}"
        words = ["run", str(recipe), "--out", str(tmp_path / f"{name}-run"), "--set", cache, *more]
        # of few posts, so that there are more blocks than one
        assert main([*words, "--set", "threads=1", "--set", "backbone.batch_size=2"]) == 0
        runs[name] = {
            file: (tmp_path / f"{name}-run" / file).read_bytes()
            for file in ("grown.jsonl", "rounds/0001/candidates.jsonl", "rounds/0002/scores.jsonl")
        }
        (store,) = (tmp_path / name).glob("*-2")
        runs[name] |= {file: (store / file).read_bytes() for file in ("rows.f32", "keys.bin")}
    assert runs["here"] == runs["there"]
    # who did what, in both: only the features were the workers'
    (place,) = re.findall("figures for Prometheus: (.*)", capsys.readouterr().err)
    with urlopen(place, timeout=10) as answer:
        figures = answer.read().decode()
    labels = r'\{stage="minilm_efficientnet features",unit="post"\}'
    assert re.search(rf"^selftrain_stage_left{labels} 0\.0$", figures, re.MULTILINE)
    (done,) = re.findall(rf"^selftrain_stage_done{labels} (.*)$", figures, re.MULTILINE)
    for name, hosts in {"here": set(), "there": {platform.node()}}.items():
        rounds = [one.stages for one in finished_rounds(RunFolder(tmp_path / f"{name}-run"))]
        assert [[one.stage for one in stages] for stages in rounds] == [
            ["features", "train", "measure"], *[["select", "verify", "train", "measure"]] * 2,
        ]  # fmt: skip
        assert (rounds[0][0].posts, rounds[0][0].workers.keys()) == (float(done), hosts)
        assert rounds[0][0].where in (tmp_path / f"{name}-run" / "report.html").read_text()
        assert not any(one.workers for stages in rounds for one in stages if one.stage != "features")
        assert all(one.posts and one.seconds for stages in rounds for one in stages)


def test_workers_ask_a_model_and_no_answer_is_bought_twice(cluster, url, tmp_path, capsys):  # noqa: F811
    """A real database and a server over HTTP; with a cap it ends early, without one it goes on."""
    model = ModelServer()
    (tmp_path / "task.toml").write_text(TASK)
    write_table(tmp_path / "posts.jsonl", [{"id": f"p{n}", "text": f"words {n}"} for n in range(600)])
    (tmp_path / "recipe.toml").write_text('[data]\nmanifest = "posts.jsonl"\ntask = "task.toml"\n')

    def words(out, *more):
        return [
            "annotate", str(tmp_path / "posts.jsonl"), "--task", str(tmp_path / "task.toml"),
            "--out", str(tmp_path / out), "--server", model.stub.url, "--max-failed", "1", *more,
        ]  # fmt: skip

    assert main(words("here.jsonl")) == 0
    told, asked = capsys.readouterr().out, sorted(model.bodies)
    model.forget()
    shared = ["--recipe", str(tmp_path / "recipe.toml"), "--set", f"vlm.database={url}"]
    shared += ["--ray", cluster.address]
    assert main(words("there.jsonl", *shared, "--token-cap", "9000")) == 2
    assert "at most 9,000 are spent" in capsys.readouterr().err
    assert 0 < len(model.bodies) < len(asked)
    assert main(words("there.jsonl", *shared)) == 0
    assert sorted(model.bodies) == asked
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert f"{len(asked):,} calls" in told


@pytest.fixture
def place_for_nodes(tmp_path, quickstart_cache):
    """The environment of a shell in which nodes are started; they are ended with the test."""
    sessions = tempfile.mkdtemp(prefix="ray")  # of a short name: sockets lie in it
    yield os.environ | {
        "HOME": str(tmp_path), "RAY_TMPDIR": sessions, "PYTHONPATH": str(HERE.parents[1]),
        "SELFTRAIN_CACHE": str(quickstart_cache), "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }  # fmt: skip
    for one in psutil.process_iter(["cmdline"]):
        if any(sessions in word for word in one.info["cmdline"] or ()):
            one.kill()
    shutil.rmtree(sessions, ignore_errors=True)


def test_the_page_leads_from_two_nodes_to_a_result(tmp_path, place_for_nodes):
    pytest.importorskip("ray", reason="needs Ray: pip install 'selftrain[ray]'")
    for block in blocks("docs/scale.md"):
        if block.language == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.code], cwd=tmp_path, env=place_for_nodes,
                capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"docs/scale.md:{block.line}\n{done.stdout}\n{done.stderr}"
    assert "200 posts labelled in predicted.jsonl" in done.stdout
    rows = (tmp_path / "runs/mine/quickstart-data/new.jsonl").read_text().splitlines()
    found = (tmp_path / "predicted.jsonl").read_text().splitlines()
    assert [json.loads(row)["id"] for row in found] == [json.loads(row)["id"] for row in rows]

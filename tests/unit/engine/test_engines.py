"""What both engines promise, without a cluster: order, errors on their way, and what is refused at once."""

from __future__ import annotations

import pickle
import socket
import sys
import threading
from contextlib import contextmanager

import pytest
from ray_helpers import Watch

from selftrain import runs
from selftrain.cli import main
from selftrain.engine import on_ray
from selftrain.engine.mapping import InProcess, Place, Rescue, StageRun
from selftrain.engine.on_ray import OnRay
from selftrain.errors import EngineError, ManifestError, ServingError


def test_in_process_a_block_is_read_when_its_turn_comes():
    met = []

    def source():
        for n in range(3):
            met.append(n)
            yield n

    with InProcess().map(source, lambda: met.append("model") or (lambda block: block * 10)) as found:
        assert met == ["model"]
        assert next(found) == 0
        assert met == ["model", 0]
        assert list(found) == [10, 20]


def test_a_stage_that_is_over_says_where_it_ran_and_how_fast():
    assert StageRun.at("x", 10, 4.0, [Place.here()] * 2) == ("x", 10, 4.0, {})
    others = [Place("b", 1), Place("a", 7), Place("b", 2), Place("b", 1), Place.here()]
    done = StageRun.at("x", 10, 4.0, others)
    assert (done.where, done.per_second) == ("1 worker on a, 2 workers on b", 2.5)
    assert StageRun.from_json(done.to_json()) == done
    assert StageRun.at("x", 0, 0.0, ()).per_second == 0.0


def through(source, stage, rescue=None, watch=None):
    """What a reader and a worker of the cluster would give the driver, one after the other."""
    watch = watch or Watch()
    worker = on_ray._Worker(stage, rescue, watch)
    return [on_ray._unpacked(worker(table)) for table in on_ray._read(source, watch)]


def test_blocks_and_results_cross_as_they_are():
    assert through(lambda: iter([{"a": (1, None)}, "é\ud800"]), lambda: lambda block: [block]) == [
        [{"a": (1, None)}], ["é\ud800"],
    ]  # fmt: skip


def failing(error, when):
    def work(block):
        if block == when:
            raise error
        return block

    return work


def test_an_error_comes_behind_the_results_before_it_and_says_where_it_was_raised():
    def source():
        yield 1
        raise ManifestError("cut off")

    first, last = through(source, lambda: failing(ServingError("no"), 2))
    assert first == 1
    assert isinstance(last.error, ManifestError)
    first, second, third = through(lambda: iter([1, 2, 3]), lambda: failing(ServingError("no"), 2))
    assert (first, third) == (1, 3)
    sent = pickle.loads(pickle.dumps(second))
    assert (type(sent.error), str(sent.error)) == (ServingError, "no")
    assert "test_engines.py" in sent.error.__notes__[0]


def test_once_a_stage_is_ending_nothing_is_read_and_no_block_begun():
    begun = []
    said = iter([False, False, False, True, True])  # to the reader, then the worker, and so on
    assert through(lambda: iter("abc"), lambda: begun.append, watch=Watch(lambda: next(said))) == [None, None]
    assert begun == ["a"]


class DiedError(BaseException):
    """In place of a death: nothing in a worker catches it."""


def test_what_workers_die_of_is_found_item_by_item():
    """Whoever gets "x" dies; the cluster gives the block to another worker each time."""
    rescue = Rescue(list, lambda item, reason: f"lost {item}: {reason}", lambda found: found)
    seen, watch = [], Watch()

    def work(block):
        seen.append(block)
        if "x" in block:
            raise DiedError
        return block.upper()

    def deliver(place, block):
        worker = on_ray._Worker(lambda: work, rescue, watch)
        try:
            return worker._done(place, block)
        except DiedError:
            return None

    died = "2 workers died of it alone: of too little memory, as a rule"
    assert [deliver(7, "axb") for _ in range(5)] == [None] * 4 + [["A", f"lost x: {died}", "B"]]
    assert seen == ["axb", "axb", "a", "x", "a", "x", "a", "b"]
    assert deliver(8, "cd") == "CD"
    watch.finish(7)
    assert watch.tries(7) == 0, "a block that is done is forgotten"


def test_a_model_that_cannot_be_opened_is_told_for_every_block():
    def stage():
        raise ServingError("not there")

    assert [str(one.error) for one in through(lambda: iter([1, 2]), stage)] == ["not there"] * 2


def test_without_ray_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'selftrain\[ray\]'"), OnRay().map(iter, list):
        pass


def test_workers_without_a_cluster_and_standard_input_on_one_are_refused(monkeypatch, tmp_path, capsys):
    words = ["predict", "m", "posts.jsonl", "--out", str(tmp_path / "o")]
    for more in (["--ray-workers", "2"], ["--ray-gpus", ".5"], ["--ray-cpus", "2"]):
        assert main([*words, *more]) == 2
        assert "add --ray ADDRESS" in capsys.readouterr().err
    from serving_helpers import TextPredictor

    from selftrain.serving.streams import ModelAtWork, filter_posts

    work = ModelAtWork(predictor=TextPredictor(), engine=OnRay())
    with pytest.raises(ServingError, match="standard input is read by this process alone"):
        filter_posts(work, "-", tmp_path / "s", threshold=0.5, text_limit=9)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "expected"),
    [([], ("there", 3, 2, 0.5)), (["--ray-workers", "1", "--ray-gpus", "0"], ("there", 1, 2, 0))],
)
def test_a_recipe_s_workers_are_taken_where_the_command_names_the_cluster(
    monkeypatch, tmp_path, more, expected
):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[data]\nmanifest = "m"\ntask = "t"\n[engine]\nkind = "ray"\nworkers = 3\ncpus = 2\ngpus = 0.5\n'
    )
    taken = []
    monkeypatch.setattr(runs, "start", lambda *_, engine, **__: taken.append(engine) or sys.exit(0))
    with pytest.raises(SystemExit):
        main(["run", str(recipe), "--out", str(tmp_path / "run"), "--ray", "there", *more])
    assert taken == [OnRay(*expected)]


@contextmanager
def listening(answer):
    """The port of a server that gives one answer and hangs up; None: it says nothing."""
    with socket.create_server(("", 0)) as server:
        server.settimeout(10)

        def serve():
            line, _ = server.accept()
            with line:
                line.recv(1000)
                if answer is None:
                    line.recv(1)  # until the other side hangs up
                else:
                    line.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)
    assert not thread.is_alive()


def test_an_address_where_no_cluster_answers_is_said(monkeypatch):
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'selftrain[ray]'")

    def refused(*_, **__):
        raise ConnectionError("nobody there")

    with listening(bytes(3) + b"\4" + bytes(5)) as port:  # as gRPC begins
        monkeypatch.setattr(ray, "init", refused)
        told = rf"no Ray cluster answers at 'localhost:{port}': nobody there\. Start one"
        with pytest.raises(EngineError, match=told), OnRay(f"localhost:{port}").map(iter, list):
            pass
    asked = []
    monkeypatch.setattr(ray, "init", lambda *given, **_: asked.append(given))
    monkeypatch.setattr("selftrain.engine.on_ray._KNOCK_SECONDS", 0.2)
    for answer, told in {
        b"HTTP/1.1 400 Bad Request\r\n\r\n": "no Ray", b"": "no Ray", b"SSH-2.0": "no Ray", None: "timed out"
    }.items():  # fmt: skip
        with (
            listening(answer) as port,
            pytest.raises(EngineError, match=told),
            OnRay(f"ray://localhost:{port}").map(iter, list),
        ):
            pass
    for address, told in {
        f"localhost:{port}": "Connection refused", f"ray://localhost:{port}": "Connection refused",
        "localhost": "Invalid address", "localhost:x": "'x'", "nobody.invalid:1": "not known",
    }.items():  # fmt: skip
        with pytest.raises(EngineError, match=told), OnRay(address).map(iter, list):
            pass
    assert not asked  # Ray itself would try for more than a minute


RAYS_WORDS = """\x1b[36mray::MapWorker(MapBatches(_Worker)).submit()\x1b[39m (pid=10775, ip=192.0.2.2)
  File "/x/selftrain/engine/on_ray.py", line 244, in _ask
    return ray.get(method.remote(*words))
ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
\tclass_name: _Notes

The above exception was the direct cause of the following exception:

ray.exceptions.UserCodeException: UDF failed to process a data block.
"""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (RAYS_WORDS, "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task"),
        ("no progress for 20 seconds.\nSee the log", "no progress for 20 seconds"),
        ("", "RuntimeError"),
    ],
)
def test_of_what_ray_says_one_line_is_told(said, told):
    assert on_ray._words(RuntimeError(said)) == told

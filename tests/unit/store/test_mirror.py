"""Run folders on object storage: one writer at a time, whatever is killed; another machine goes on."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack

import pytest
from object_storage import BUCKET, emptied_bucket

from selftrain.cli import main
from selftrain.errors import RunBusyError, RunMismatchError, RunStateError, StorageError
from selftrain.runs import start
from selftrain.store import mirror
from selftrain.store.mirror import Mirror

pytest.importorskip("boto3", reason="needs the development tools: pip install .[dev]")
URL = f"s3://{BUCKET}/team/mine"


@pytest.fixture
def client(storage, monkeypatch):
    """The bucket, emptied; a writer touches its place all the time."""
    monkeypatch.setattr(mirror, "BEAT", 0.1)
    return emptied_bucket(storage, monkeypatch)


def kept(client):
    """What run.json says."""
    return json.loads(client.get_object(Bucket=BUCKET, Key="team/mine/run.json")["Body"].read())


def names(client):
    found = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return sorted(one["Key"].removeprefix("team/mine/").rpartition("/")[0] for one in found)


def write(folder, **files):
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_json", ".json").replace("_toml", ".toml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def content(folder):
    return {
        str(file.relative_to(folder)): file.read_text()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }


def test_what_one_machine_wrote_another_finds_and_goes_on_from(client, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, recipe_toml="a", rounds__0000__metrics_json="0", report="old")
    with Mirror(URL, here).held() as publish:
        (here / "best").symlink_to("rounds/0000")
        publish()
        write(here, report="new", rounds__0001__metrics_json="1")
    assert kept(client)["writer"] is None
    assert names(client) == sorted(
        ["", "files/recipe.toml", "files/report", *(f"files/rounds/000{i}/metrics.json" for i in range(2))]
    )  # the old report is gone
    with Mirror(URL, there).held():
        assert content(there) == content(here)
        assert (there / "best").readlink() == (here / "best").readlink()
        write(there, rounds__0001__metrics_json="made anew", rounds__0002__metrics_json="2")
        (there / "report").unlink()
    (here / "rounds" / "0003").mkdir()
    write(here, rounds__0003__verdicts="half a round")
    with Mirror(URL, here).held():
        assert content(here) == content(there) | {"report": "new"}
    assert main(["status", str(here)]) == 2  # none of this is a run; nothing raises


def test_a_second_writer_is_refused_while_the_first_one_lives(client, tmp_path):
    (tmp_path / "a").mkdir()
    with Mirror(URL, tmp_path / "a").held():
        with (
            pytest.raises(RunBusyError, match=rf"process \d+ at .* works on the run {URL}"),
            Mirror(URL, tmp_path / "b").held(),
        ):
            pytest.fail("two at once")
        write(tmp_path / "a", report="mine")
    assert names(client) == ["", "files/report"]


def test_of_writers_that_begin_at_once_one_gets_through(client, tmp_path):
    got, refused, stack = [], [], ExitStack()
    together = threading.Barrier(6)

    def begin(name):
        (tmp_path / name).mkdir()
        together.wait()
        try:
            stack.enter_context(Mirror(URL, tmp_path / name).held())
        except RunBusyError:
            refused.append(name)
        else:
            got.append(name)

    threads = [threading.Thread(target=begin, args=(name,)) for name in "abcdef"]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    stack.close()
    assert (len(got), len(refused)) == (1, 5)


class Killed(Mirror):
    """A writer that was killed, or hangs: it touches nothing and lets go of nothing."""

    def _touch(self, ended):
        ended.wait()


def test_a_dead_writer_is_followed_and_finds_out_where_it_was_not_dead(client, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "STALE", 0.5)
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, recipe_toml="a", report="first")
    with Killed(URL, here).held() as publish:
        publish()
        with Mirror(URL, there).held():  # after a wait: another machine, for all that is known
            assert content(there) == content(here)
            write(there, report="second")
        write(here, report="never seen")
        with pytest.raises(RunBusyError, match="another process has worked on the run"):
            publish()
    state = kept(client)
    assert state["writer"] is None
    digest = state["files"]["report"]
    found = client.get_object(Bucket=BUCKET, Key=f"team/mine/files/report/{digest}")
    assert found["Body"].read() == b"second"


def test_a_process_of_the_same_folder_need_not_wait(client, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "STALE", 10_000)
    write(tmp_path, recipe_toml="a")
    Killed(URL, tmp_path)._take()
    with Mirror(URL, tmp_path).held():
        assert kept(client)["step"] == 0
    assert kept(client)["step"] == 1


def test_a_write_whose_answer_was_lost_counts(client, tmp_path, monkeypatch):
    write(tmp_path, report="a")
    replace = mirror._Bucket.replace

    def lossy(self, name, value, etag):
        done = replace(self, name, value, etag)
        return None if value["step"] == 1 and value["writer"] else done  # as its repetition is answered

    monkeypatch.setattr(mirror._Bucket, "replace", lossy)
    with Mirror(URL, tmp_path).held() as publish:
        publish()
    assert kept(client)["step"] == 1


def test_what_cannot_be_kept_there_is_refused(client, tmp_path, monkeypatch):
    write(tmp_path / "a", recipe_toml="a")
    with Mirror(URL, tmp_path / "a").held():
        pass
    write(tmp_path / "b", recipe_toml="another run")
    with pytest.raises(RunMismatchError, match="empty --out"), Mirror(URL, tmp_path / "b").held():
        pytest.fail("over a run of its own")
    assert content(tmp_path / "b") == {"recipe.toml": "another run"}
    with Mirror(URL, tmp_path / "other").held():
        assert content(tmp_path / "other") == {"recipe.toml": "a"}
    client.put_object(Bucket=BUCKET, Key="team/mine/run.json", Body=json.dumps(
        kept(client) | {"writer": None, "files": {"../outside": "0"}}
    ))  # fmt: skip
    with pytest.raises(StorageError, match="no file of a run"), Mirror(URL, tmp_path / "c").held():
        pytest.fail("out of the folder")
    for url in ("s3://runs", "gs://runs/a", "runs/a"):
        with pytest.raises(StorageError, match="expected s3://BUCKET/PREFIX"):
            Mirror(url, tmp_path)
    with (
        pytest.raises(StorageError, match="AWS_ENDPOINT_URL"),
        Mirror("s3://nobody/a", tmp_path / "a").held(),
    ):
        pytest.fail("no such bucket")
    with (
        pytest.raises(RunStateError, match="people's reviews"),
        Mirror(f"s3://{BUCKET}/reviewed", tmp_path / "r").held(),
    ):
        write(tmp_path / "r", **{"review.sqlite": "a database"})


def test_a_damaged_file_is_seen(client, tmp_path):
    write(tmp_path / "a", report="as it was")
    with Mirror(URL, tmp_path / "a").held():
        pass
    (path,) = [f"team/mine/files/{name}/{digest}" for name, digest in kept(client)["files"].items()]
    client.put_object(Bucket=BUCKET, Key=path, Body=b"as it is")
    with (
        pytest.raises(StorageError, match="does not hold what was written"),
        Mirror(URL, tmp_path / "b").held(),
    ):
        pytest.fail("damaged")


def test_a_damaged_note_of_the_folder_is_named(client, tmp_path):
    write(tmp_path / "a", recipe_toml="a")
    with Mirror(URL, tmp_path / "a").held():
        pass
    for content in ("[" * 200_000, "[1]", "{"):
        (tmp_path / "a" / ".mirror.json").write_text(content)
        with (
            pytest.raises(RunStateError, match=r"mirror.json cannot be read .*: remove it"),
            Mirror(URL, tmp_path / "a").held(),
        ):
            pytest.fail("damaged")


def test_a_store_without_conditions_is_refused(client, tmp_path, monkeypatch):
    def careless(self, name, value, etag):
        return str(self._client.put_object(**self._at(name), Body=json.dumps(value).encode())["ETag"])

    monkeypatch.setattr(mirror._Bucket, "replace", careless)
    with pytest.raises(StorageError, match="does not keep conditions"), Mirror(URL, tmp_path / "a").held():
        pytest.fail("without conditions")


def test_a_run_goes_on_elsewhere_with_the_same_bytes(client, small_run, tmp_path):
    recipe = small_run.parent / "small.toml"
    begun = start(recipe, tmp_path / "here", mirror=URL + "/")
    rounds = begun.rounds()
    assert [next(rounds).number for _ in range(2)] == [0, 1]
    rounds.close()
    assert {"report.html", "rounds/0001/metrics.json"} <= kept(client)["files"].keys()
    assert begun.folder.payer == URL
    command = ["run", str(recipe), "--out", str(tmp_path / "there"), "--mirror", URL]
    assert main(command) == 0
    alone, moved = small_run / "grown.jsonl", tmp_path / "there" / "grown.jsonl"
    assert moved.read_bytes() == alone.read_bytes()
    with Mirror(URL, tmp_path / "third").held():
        assert main(["status", str(tmp_path / "third")]) == 0
        assert sorted(content_names(tmp_path / "third")) == sorted(content_names(tmp_path / "there"))
    assert main([*command, "--set", "human.budget=3"]) == 2


def content_names(folder):
    return [
        str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and file.name[0] != "."
    ]

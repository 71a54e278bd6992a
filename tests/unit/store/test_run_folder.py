"""The run folder: written whole or not at all, held by one process, and true to its recipe."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from selftrain.errors import RunBusyError, RunMismatchError, RunStateError, StorageError
from selftrain.store import atomic, checksums
from selftrain.store.run_dir import MAY_CHANGE, PostDigest, RunFolder, read_jsonl

CHECKOUT = Path(__file__).parents[3]
RECIPE = {
    "seed": 0,
    "threads": None,
    "data": {"manifest": "/m.jsonl", "labelled": 100},
    "rounds": {"max": 5, "patience": 3},
}
ENVIRONMENT = {"python": "3", "identity": {"posts": "abc", "backbone": "def"}}


def changed(**sections):
    return {
        key: {**value, **sections.get(key, {})} if isinstance(value, dict) else sections.get(key, value)
        for key, value in RECIPE.items()
    }


def snapshot(folder):
    return {
        file.relative_to(folder): (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino)
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.locked():
        run.begin(RECIPE, ENVIRONMENT)
    return run


# ---- atomic writes ----------------------------------------------------------------------------------


def refuse(monkeypatch, target, name, code=errno.ENOSPC):
    def refusing(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(target, name, refusing)


@pytest.mark.parametrize(("target", "name"), [(os, "fsync"), (Path, "write_bytes"), (Path, "replace")])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, target, name):
    file = tmp_path / "grown.jsonl"
    atomic.write_text(file, "old")
    with monkeypatch.context() as patch:
        refuse(patch, target, name)
        with pytest.raises(StorageError, match=r"the disk is full: .*grown\.jsonl \(3 bytes\).*same command"):
            atomic.write_text(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
    atomic.write_text(file, "new")
    assert file.read_text() == "new"


def test_a_refusing_disk_is_told_from_a_full_one(tmp_path, monkeypatch):
    refuse(monkeypatch, Path, "replace", errno.EACCES)
    with pytest.raises(
        StorageError, match=r"cannot write .*Permission denied.*Check the folder's permissions"
    ):
        atomic.write_text(tmp_path / "file", "new")


def test_a_file_in_the_place_of_a_folder_is_told_as_that(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*What stands there is no folder"):
        atomic.write_text(tmp_path / "file" / "run.json", "new")
    assert (tmp_path / "file").is_file()


def test_what_was_written_is_synced_before_it_takes_its_place(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append("replace"), replace(self, to))[1])
    atomic.write_text(tmp_path / "file", "new")
    assert events == ["fsync", "replace", "fsync"]


def test_a_written_file_is_as_open_as_any_other(tmp_path):
    (tmp_path / "ordinary").write_text("")
    atomic.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_json_is_refused_before_the_file_is_touched(tmp_path, number):
    file = tmp_path / "metrics.json"
    atomic.write_json(file, {"macro_f1": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(file, {"macro_f1": number})
    assert json.loads(file.read_text()) == {"macro_f1": 0.5}


def test_a_pointer_moves_in_one_step(tmp_path, monkeypatch):
    link = tmp_path / "best"
    atomic.point(link, "rounds/0001")
    seen = []
    replace = Path.replace

    def watched(self, to):
        seen.append((str(to.readlink()), str(self.readlink())))
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", watched)
    atomic.point(link, "rounds/0002")
    assert seen == [("rounds/0001", "rounds/0002")]
    assert str(link.readlink()) == "rounds/0002"
    monkeypatch.undo()
    refuse(monkeypatch, Path, "symlink_to")
    with pytest.raises(StorageError, match="the disk is full"):
        atomic.point(link, "rounds/0003")
    assert str(link.readlink()) == "rounds/0002"


# ---- one process at a time --------------------------------------------------------------------------

HOLDER = """
import sys
from selftrain.store.run_dir import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_turned_away_until_the_first_has_ended(folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.path)],
        cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunBusyError, match="another process works on the run"), folder.locked():
            pass
    finally:
        holder.kill()
        holder.wait(timeout=30)
    with folder.locked():  # a killed holder holds nothing
        pass


def test_who_asks_whether_a_run_is_held_turns_nobody_away(folder):
    with folder.locked():
        pass
    asked = (folder.path / ".lock").open("rb")
    fcntl.flock(asked, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as `report.status.is_held` does
    threading.Timer(0.05, asked.close).start()
    with folder.locked():
        assert asked.closed


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"), RunFolder(tmp_path / "file" / "run").locked():
        pass


def test_a_lock_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*\.lock"), RunFolder(tmp_path).locked():
        pass


# ---- the same run -----------------------------------------------------------------------------------


def test_the_same_recipe_goes_on(folder):
    before = (folder.path / "environment.json").read_bytes()
    folder.begin(RECIPE, {**ENVIRONMENT, "python": "4"})
    assert (folder.path / "environment.json").read_bytes() == before
    assert folder.recipe()["data"] == {"manifest": "/m.jsonl", "labelled": 100}


def test_another_recipe_is_refused_with_every_key_and_nothing_is_touched(folder):
    before = snapshot(folder.path)
    other = changed(seed=1, data={"labelled": None})
    with pytest.raises(RunMismatchError) as caught:
        folder.begin(other, ENVIRONMENT)
    message = str(caught.value)
    assert "seed: 0 in the folder, 1 now" in message
    assert "data.labelled: 100 in the folder, None now" in message
    assert "data.manifest" not in message
    assert snapshot(folder.path) == before


@pytest.mark.parametrize("key", ["posts", "backbone"])
def test_other_posts_or_another_backbone_are_refused(folder, key):
    before = snapshot(folder.path)
    environment = {"identity": {**ENVIRONMENT["identity"], key: "other"}}
    with pytest.raises(RunMismatchError, match=f"another identity(?s:.*)  {key}: .* 'other' now"):
        folder.begin(RECIPE, environment)
    assert snapshot(folder.path) == before


def test_a_run_of_a_version_without_a_key_goes_on_as_it_was_begun(folder):
    now = changed(data={"pool_copies": "keep"})
    folder.check_recipe(now)
    with pytest.raises(RunMismatchError, match=r"data.pool_copies: 'keep' in the folder, 'drop' now"):
        folder.check_recipe(changed(data={"pool_copies": "drop"}))


def test_a_run_that_never_kept_its_pictures_and_policy_goes_on(folder):
    later = {**ENVIRONMENT["identity"], "contents": "1", "policy": "2", "answers": "3", "prompts": "4"}
    folder.begin(RECIPE, {"identity": later})
    (folder.path / "environment.json").write_text(json.dumps({"identity": later}))
    checksums.note_written(folder.path / "environment.json")
    with pytest.raises(RunMismatchError, match="contents: '1' in the folder, '9' now"):
        folder.begin(RECIPE, {"identity": later | {"contents": "9"}})


def digests(**said):
    return [PostDigest(post_id, *each.split()) for post_id, each in said.items()]


def test_it_is_said_which_posts_differ_how_many_and_since_when(tmp_path):
    run = RunFolder(tmp_path)
    run.begin(RECIPE, ENVIRONMENT, digests(a="pool 1", b="pool 2", c="test 3", d="pool 4"))
    environment = {"identity": {**ENVIRONMENT["identity"], "posts": "other"}}
    told = (
        r"posts: 1 new \('e'\), 1 gone \('d'\), 1 in another split \('c'\),"
        r" 1 of another text or label \('b'\), since 20\d\d-\d\d-\d\d"
    )
    with pytest.raises(RunMismatchError, match=told):
        run.begin(RECIPE, environment, digests(a="pool 1", b="pool 9", c="pool 3", e="pool 5"))


def test_limits_may_be_changed_and_are_written_back(folder):
    folder.begin(changed(rounds={"max": 50, "patience": 9}), ENVIRONMENT)
    assert folder.recipe()["rounds"] == {"max": 50, "patience": 9}


def test_a_start_killed_before_the_recipe_was_written_is_no_run_yet(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "environment.json").write_text("{}")
    run.begin(RECIPE, ENVIRONMENT)
    assert run.environment().record == ENVIRONMENT


def test_what_a_killed_process_left_half_written_is_removed_at_the_next_start(folder):
    (folder.path / "rounds" / "0000").mkdir(parents=True)
    leftovers = [folder.path / ".grown.jsonl.1-ab.tmp", folder.path / "rounds/0000/.metrics.json.1-ab.tmp"]
    for leftover in leftovers:
        leftover.write_text("half")
    folder.begin(RECIPE, ENVIRONMENT)
    assert not any(leftover.exists() for leftover in leftovers)


# ---- reading ----------------------------------------------------------------------------------------


def close(folder, number, kept=True):
    folder.open_round(number)
    folder.close_round(number, {"round": number, "kept": kept})


def test_a_round_without_metrics_did_not_happen(folder):
    close(folder, 0)
    close(folder, 1, kept=False)
    (folder.open_round(2) / "verdicts.jsonl").write_text("{}\n")
    assert [m["round"] for m in folder.round_records()] == [0, 1]
    assert folder.best_round() == 0
    assert list(folder.open_round(2).iterdir()) == []  # begun again from nothing


def test_no_finished_round_has_no_best(folder):
    with pytest.raises(RunStateError, match="no finished round yet"):
        folder.best_round()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"round": 3, "kept": true}', '{"round": 0, "kept": 1}', "\xff"]
)
def test_damaged_metrics_are_named(folder, content):
    close(folder, 0)
    (folder.round_path(0) / "metrics.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RunStateError, match=r"rounds/0000/metrics\.json.*damaged"):
        folder.round_records()


def test_a_folder_without_recipe_is_no_run(tmp_path):
    with pytest.raises(RunStateError, match=r"is not a run folder: it has no recipe\.toml"):
        RunFolder(tmp_path).recipe()
    (tmp_path / "posts.jsonl").write_text("")
    with pytest.raises(RunStateError, match=r"posts\.jsonl is not a run folder: it has no recipe\.toml"):
        RunFolder(tmp_path / "posts.jsonl").recipe()


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe"])
def test_a_damaged_recipe_is_named(folder, content):
    folder.recipe_path.write_bytes(content)
    with pytest.raises(RunStateError, match=r"recipe\.toml is damaged: .*What to do: take it from a copy"):
        folder.check_recipe(RECIPE)
    (folder.path / checksums.FILE).unlink()
    with pytest.raises(RunStateError, match=r"recipe\.toml cannot be read"):
        folder.check_recipe(RECIPE)


def test_a_damaged_line_is_named_with_its_number(tmp_path):
    file = tmp_path / "verdicts.jsonl"
    file.write_text('{"a": 1}\n{"b": \n')
    rows = read_jsonl(file)
    assert next(rows) == {"a": 1}
    with pytest.raises(RunStateError, match="line 2 is not JSON"):
        next(rows)


def test_publishing_moves_best_and_replaces_grown(folder):
    close(folder, 0)
    folder.publish(0, [{"id": "a"}])
    folder.publish(0, [{"id": "b"}])
    assert (folder.path / "grown.jsonl").read_text() == '{"id": "b"}\n'
    assert (folder.path / "best" / "metrics.json").exists()


def test_the_guide_lists_the_keys_that_may_change():
    guide = (Path(__file__).parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(rounds|agents|vlm|human|engine)` \| (.*) \|$", guide, re.MULTILINE)
    listed = {f"{section}.{key}" for section, keys in rows for key in re.findall(r"`([\w.]+)`", keys)}
    assert listed == MAY_CHANGE


def test_a_copy_that_followed_links_is_told_what_to_remove(folder):
    (folder.path / "best").unlink(missing_ok=True)
    (folder.path / "best").mkdir()
    with pytest.raises(StorageError, match=r"best is a folder, expected a link.*Remove it"):
        folder.publish(0, [])
    (folder.path / "best").rmdir()
    folder.publish(0, [])

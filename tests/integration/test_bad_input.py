"""Whatever is wrong with what it is given: a clear error or a quarantined row, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from cli_helpers import here
from loop_child import light_backbone
from processes import selftrain

from selftrain.data import feature_store
from selftrain.data.drawn import ADVERTISEMENT, draw_posts
from selftrain.data.task import dump_task, load_task
from selftrain.errors import (
    CacheError,
    NonFiniteLossError,
    QuarantineError,
    RunBusyError,
    RunMismatchError,
    SplitError,
    StorageError,
)
from selftrain.models import pretrained
from selftrain.runs import start

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).parents[2]
POSTS = 60
RECIPE = """
seed = 0
threads = 1
[data]
manifest = "manifest.jsonl"
task = "task.toml"
labelled = 12
[backbone]
cache = "cache"
[classifier]
epochs = 20
[selection]
k = 8
[rounds]
max = 2
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A recipe beside its posts; the backbone is one that costs nothing to load."""
    monkeypatch.setattr(pretrained, "load_backbone", light_backbone)
    draw_posts(tmp_path, POSTS, seed=2)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def go(place, *overrides, out="run"):
    return list(start(place / "recipe.toml", place / out, overrides).rounds())


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def edit(place, change):
    """Rewrites the manifest with `change` made to its list of rows."""
    file = place / "manifest.jsonl"
    rows = rows_of(file)
    change(rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def assert_nothing_was_computed(place, out="run"):
    assert not (place / "cache").exists(), "features were computed first"
    assert not (place / out / "recipe.toml").exists()
    assert not (place / out / "rounds").exists()


def test_sound_input_gives_rounds_and_an_empty_quarantine(place):
    assert [r.number for r in go(place)] == [0, 1, 2]
    assert (place / "run" / "quarantine.jsonl").read_text() == ""


# ---- labels and splits ------------------------------------------------------------------------------


def keep_labels(label, count):
    def change(rows):
        for row in [row for row in rows if row["label"] == label][count:]:
            del row["label"]

    return change


@pytest.mark.parametrize(
    ("count", "labelled"), [(0, 12), (1, 12), (2, 12), (0, "none"), (1, "none"), (4, "none")]
)
def test_too_few_labels_of_a_class_are_refused_before_anything_is_computed(place, count, labelled):
    edit(place, keep_labels(ADVERTISEMENT, count))
    if labelled == "none":
        recipe = (place / "recipe.toml").read_text()
        (place / "recipe.toml").write_text(recipe.replace("labelled = 12\n", ""))
    with pytest.raises(SplitError, match=ADVERTISEMENT) as caught:
        go(place)
    assert any(word in str(caught.value) for word in ("label more", "Label more", "ask for fewer"))
    assert_nothing_was_computed(place)


def test_an_empty_pool_is_refused_before_anything_is_computed(place):
    recipe = (place / "recipe.toml").read_text()
    (place / "recipe.toml").write_text(recipe.replace("labelled = 12\n", ""))
    with pytest.raises(SplitError, match="the pool is empty"):
        go(place)
    assert_nothing_was_computed(place)


@pytest.mark.parametrize(("k", "fits"), [(30, True), (31, False)])
def test_more_candidates_than_the_pool_holds_are_refused_before_anything_is_computed(place, k, fits):
    if fits:
        assert (
            go(place, f"selection.k={k}", "rounds.max=1", "data.duplicates=off")[1].sets.candidates.posts <= k
        )
        return
    with pytest.raises(SplitError, match=r"31 posts requested by selection\.k, 30 available.*30 at most"):
        go(place, f"selection.k={k}")
    assert_nothing_was_computed(place)


def test_a_run_without_rounds_needs_no_pool_for_them(place):
    assert len(go(place, "selection.k=500", "rounds.max=0")) == 1


def test_later_rounds_take_what_is_left(place):
    rounds = go(
        place,
        "selection.k=20",
        "rounds.max=3",
        "agents.kind=none",
        "selection.retract_flipped=false",
        "rounds.patience=9",
    )
    asked = [r.sets.candidates.posts for r in rounds[1:]]
    assert len(asked) > 1
    assert 0 < asked[-1] < asked[0]


def test_shares_of_no_class_are_refused_before_anything_is_computed(place):
    with pytest.raises(
        SplitError, match=r"selection shares are .*'spam'.*expected 'advertisement' and 'invitation'"
    ):
        go(place, "selection.shares={spam = 0.5, invitation = 0.5}")
    assert_nothing_was_computed(place)


def test_an_id_in_two_splits_is_refused(place):
    (place / "pool.jsonl").write_text(json.dumps({"id": "notice-00003", "text": "another post"}) + "\n")
    with pytest.raises(SplitError, match=r"id 'notice-00003' stands in \w+ and in \w+"):
        go(place, f"data.pool={json.dumps(str(place / 'pool.jsonl'))}")
    assert_nothing_was_computed(place)


# ---- rows -------------------------------------------------------------------------------------------


def bomb(path):
    """A PNG of a few bytes whose header claims 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


IMAGES = {
    "missing": (lambda path: path.unlink(), "expected an image file"),
    "truncated": (truncate, "truncated|damaged"),
    "huge": (bomb, "pixels; at most 50,000,000 are decoded"),
    "no image": (lambda path: path.write_text("GIF of a cat, really"), "image"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "expected an image file"),
}


def with_image(place, number=0):
    """(id, image) of the nth post that has one picture and words."""
    rows = [
        row for row in rows_of(place / "manifest.jsonl") if len(row.get("images", ())) == 1 and row["text"]
    ]
    return rows[number]["id"], place / rows[number]["images"][0]


@pytest.mark.parametrize("kind", IMAGES)
def test_a_bad_image_is_quarantined_with_its_reason_and_the_run_goes_on(place, kind):
    spoil, reason = IMAGES[kind]
    post_id, image = with_image(place)
    spoil(image)
    rounds = go(place)
    assert len(rounds) == 3
    (entry,) = rows_of(place / "run" / "quarantine.jsonl")
    assert entry["id"] == post_id
    assert image.name in entry["reason"]
    assert any(word in entry["reason"] for word in reason.split("|"))
    splits = json.loads((place / "run" / "environment.json").read_text())["splits"]
    assert sum(splits.values()) == POSTS - 1


def duplicate_id(rows):
    rows[5]["id"] = rows[4]["id"]


def foreign_label(rows):
    rows[5]["label"] = "sermon"


def path_out(rows):
    rows[5]["images"] = ["../../etc/passwd"]


def url(rows):
    rows[5]["images"] = ["https://example.org/cat.png"]


def nothing(rows):
    rows[5] |= {"text": " ", "images": []}


BAD_ROWS = {
    duplicate_id: "stands already in line 5",
    foreign_label: "label 'sermon' is none of",
    path_out: "leads out of the manifest's folder",
    url: "is a URL",
    nothing: "neither text nor image",
}


@pytest.mark.parametrize("change", BAD_ROWS, ids=lambda change: change.__name__)
def test_a_bad_row_is_quarantined_below_the_threshold_and_stops_the_run_above(place, change):
    edit(place, change)
    with pytest.raises(QuarantineError, match="line 6.*" + BAD_ROWS[change]):
        go(place, "data.max_bad_rows=0", out="strict")
    assert_nothing_was_computed(place, out="strict")
    assert len(go(place)) == 3
    (entry,) = rows_of(place / "run" / "quarantine.jsonl")
    assert (entry["kind"], entry["line"]) == ("row", 6)
    assert BAD_ROWS[change] in entry["reason"]


def test_posts_that_cannot_be_encoded_stop_the_run_above_the_threshold(place):
    spoiled = [with_image(place, number) for number in range(4)]
    for _, image in spoiled:
        truncate(image)
    with pytest.raises(
        QuarantineError, match=rf"(?s)4 of {POSTS} posts .*could not be encoded.*{spoiled[0][0]}"
    ):
        go(place)
    assert not (place / "run" / "rounds").exists()


def test_copies_across_splits_are_quarantined(place):
    def copy(rows):
        rows.append({"id": "copy", "text": rows[0]["text"], "images": rows[0].get("images", [])})

    edit(place, copy)
    assert go(place, "data.near_duplicate_cosine=1.0")
    entries = rows_of(place / "run" / "quarantine.jsonl")
    assert Counter(entry["kind"] for entry in entries)["copy"] >= 1
    assert any("matches" in entry["reason"] for entry in entries)


def test_copies_within_the_pool_stay_unless_they_are_to_be_dropped(place):
    words = "the very same words, which nothing else here resembles"
    others = [{"id": f"again{n}", "text": words} for n in range(3)]
    edit(place, lambda rows: rows.extend([*others, {"id": "nearly", "text": f"{words}!"}]))
    pools = []
    for out in ("keep", "drop", "drop_near"):
        assert go(place, f"data.pool_copies={out}", out=out)
        posts = rows_of(place / out / "posts.jsonl")
        pools.append({one["id"] for one in posts if one["split"] == "pool"})
    assert pools[0] - pools[1] == {"again1", "again2"}
    assert pools[0] > pools[1] > {"again0", "nearly"}
    assert pools[1] - pools[2] == {"nearly"}
    left = [one for one in rows_of(place / "drop" / "quarantine.jsonl") if one["kind"] == "copy"]
    assert [(one["id"], one["reason"]) for one in left][-2:] == [
        (f"again{n}", "its content matches 'again0' in pool; it was in pool") for n in (1, 2)
    ]
    near = rows_of(place / "drop_near" / "quarantine.jsonl")
    assert near[-1]["reason"] == "its near content matches 'again0' in pool; it was in pool"


def test_a_pool_that_is_too_small_without_its_copies_says_so(place):
    edit(place, lambda rows: rows.extend({"id": f"again{n}", "text": "Again: the same"} for n in range(3)))
    with pytest.raises(SplitError, match=r"available in the pool: set selection.k to") as told:
        go(place, "selection.k=32", "data.pool_copies=drop_near")  # of 33
    assert "copies of other posts were taken out: 2 of pool" in str(told.value)
    assert "data.pool_copies" in str(told.value)


def test_with_labels_hidden_no_copy_of_a_labelled_post_is_left_in_the_pool_if_copies_are_dropped(place):
    def copy(rows):
        rows += [row | {"id": f"copy of {row['id']}"} for row in rows if row.get("label")]

    edit(place, copy)
    for out, more, left in (("kept", (), True), ("dropped", ("data.pool_copies=drop",), False)):
        assert go(place, "data.duplicates=off", "selection.k=2", *more, out=out)
        found = {one["id"]: one["split"] for one in rows_of(place / out / "posts.jsonl")}
        pairs = [(found.get(one), found.get(f"copy of {one}")) for one in found]
        assert any(sorted(map(str, pair)) == ["labelled", "pool"] for pair in pairs) is left


# ---- the run itself ---------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_round_and_the_step(place):
    with pytest.raises(NonFiniteLossError, match=r"round 0, epoch 2, step 1: the loss is nan"):
        go(place, "classifier.weight_decay=1e300", out="nan")
    assert not (place / "nan" / "rounds" / "0000" / "metrics.json").exists()


def snapshot(folder):
    return {
        f: (f.read_bytes(), f.stat().st_mtime_ns)
        for f in folder.rglob("*")
        if f.is_file() and f.name != ".lock"
    }


def test_a_folder_of_another_recipe_is_refused_and_not_touched(place):
    go(place, "rounds.max=1")
    before = snapshot(place / "run")
    (place / "cache").rename(place / "aside")
    with pytest.raises(RunMismatchError, match=r"selection\.k: 8 in the folder, 9 now"):
        go(place, "selection.k=9")
    assert not (place / "cache").exists(), "features were computed first"
    (place / "aside").rename(place / "cache")
    assert snapshot(place / "run") == before
    assert len(go(place, "rounds.max=2")) == 3


def test_changed_posts_are_refused_and_the_run_is_not_touched(place):
    go(place, "rounds.max=1")
    before = snapshot(place / "run")
    edit(place, lambda rows: rows[0].update(text="Come to a picnic that nobody has heard of"))
    with pytest.raises(RunMismatchError, match=r"another identity(?s:.*)posts: "):
        go(place, "rounds.max=1")
    assert snapshot(place / "run") == before


def test_pictures_that_changed_are_refused_under_the_same_names_too(place):
    go(place, "rounds.max=1")
    before = snapshot(place / "run")
    first, second = sorted((place / "images").iterdir())[:2]
    second.write_bytes(first.read_bytes())
    with pytest.raises(RunMismatchError, match=r"another identity(?s:.*)posts: 1 with other pictures"):
        go(place, "rounds.max=1")
    assert snapshot(place / "run") == before


@pytest.mark.parametrize("what", ["positive", "policy"])
def test_a_task_that_means_something_else_is_refused(place, what):
    go(place, "rounds.max=1")
    before = snapshot(place / "run")
    task = load_task(place / "task.toml")
    other = {"positive": task.names[1 - task.names.index(task.positive)], "policy": "Another one."}
    dump_task(replace(task, **{what: other[what]}), place / "task.toml")
    with pytest.raises(RunMismatchError, match=r"another identity(?s:.*)policy: the task's classes"):
        go(place, "rounds.max=1")
    assert snapshot(place / "run") == before


def test_a_second_process_on_the_same_run_is_turned_away(place):
    rounds = start(place / "recipe.toml", place / "run").rounds()
    next(rounds)
    with pytest.raises(RunBusyError, match="another process works on the run"):
        go(place)
    result = selftrain("run", place / "recipe.toml", "--out", place / "run")
    assert result.returncode == 2, result.stderr
    assert "another process works on the run" in result.stderr
    assert "Traceback" not in result.stderr
    rounds.close()
    assert len(go(place)) == 3


def test_the_command_line_says_what_is_wrong_with_the_recipe_without_a_traceback(place):
    words = ("run", place / "recipe.toml", "--out", place / "run")
    result = here(*words, "--set", "selection.k=0", "--set", "rounds.maximum=3")
    assert result.returncode == 2
    assert "selection.k" in result.stderr
    assert "rounds.maximum" in result.stderr


# ---- a full disk ------------------------------------------------------------------------------------


def full_at(monkeypatch, owner, name, matches, nth=1):
    """From its nth matching call on, `owner.name` finds the disk full."""
    original, left = getattr(owner, name), [nth]

    def refusing(*args, **kwargs):
        if matches(args):
            left[0] -= 1
            if left[0] <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, refusing)


def named(name, position=0):
    return lambda args: name in Path(args[position]).name


FULL = {
    "features": (feature_store, "_write_at", named("rows.f32"), 1, CacheError),
    "environment": (Path, "write_bytes", named("environment.json"), 1, StorageError),
    "round folder": (Path, "mkdir", named("0001"), 1, StorageError),
    "candidates": (Path, "write_bytes", named("candidates.jsonl"), 2, StorageError),
    "verdicts": (Path, "write_bytes", named("verdicts.jsonl"), 1, StorageError),
    "model": (Path, "write_bytes", named("model.safetensors"), 2, StorageError),
    "metrics": (Path, "replace", named("metrics.json", 1), 2, StorageError),
    "grown": (Path, "open", lambda args: args[1:] == ("wb",) and "grown" in args[0].name, 2, StorageError),
    "best": (Path, "symlink_to", named("best"), 2, StorageError),
    "sync": (os, "fsync", lambda args: True, 9, (StorageError, CacheError)),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A place as above, with a run `whole` that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    draw_posts(folder, POSTS, seed=2)
    (folder / "recipe.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "load_backbone", light_backbone)
        go(folder, out="whole")
        yield folder


@pytest.mark.parametrize("point", FULL)
def test_a_disk_that_fills_up_anywhere_stops_the_run_and_nothing_is_lost(whole, tmp_path, monkeypatch, point):
    owner, name, matches, nth, expected = FULL[point]
    cache, run = f'backbone.cache="{tmp_path / "cache"}"', tmp_path / "run"
    with monkeypatch.context() as patch:
        full_at(patch, owner, name, matches, nth)
        with pytest.raises(expected, match=r"the disk is full|no space"):
            go(whole, cache, out=run)
    assert not list(run.rglob(".*.tmp"))
    assert len(go(whole, cache, out=run)) == 3
    assert (run / "grown.jsonl").read_bytes() == (whole / "whole/grown.jsonl").read_bytes()


def mounted(action, target, size="64k"):
    options = ["-o", f"{'remount,' if action == 'remount' else ''}size={size}"]
    arguments = (
        ["umount", str(target)]
        if action == "umount"
        else ["mount", "-t", "tmpfs", *options, "none", str(target)]
    )
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def test_a_really_full_disk_stops_the_run_and_with_space_the_same_command_ends_the_same(whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (result := mounted("mount", disk)).returncode:
        pytest.skip(f"may not mount a small disk: {result.stderr.strip()}")
    try:
        with pytest.raises(StorageError, match="the disk is full"):
            go(whole, out=disk / "run")
        assert (disk / "run/rounds/0000/metrics.json").exists(), "the disk was too small for a round"
        assert mounted("remount", disk, "8m").returncode == 0
        assert len(go(whole, out=disk / "run")) == 3
        assert (disk / "run/grown.jsonl").read_bytes() == (whole / "whole/grown.jsonl").read_bytes()
    finally:
        mounted("umount", disk)

"""`predict` on a real run: labels as the run's own model gives them, and what is left out."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from ray_helpers import across_processes
from report_helpers import by_hand

from selftrain.cli import main
from selftrain.data.features import extract_features
from selftrain.data.manifest import read_manifest
from selftrain.engine.on_ray import OnRay
from selftrain.models.head import load_head
from selftrain.store import checksums
from selftrain.store.run_dir import RunFolder


def records(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def copied(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "run", symlinks=True)


@pytest.fixture
def manifest(small_run, tmp_path):
    """Ten of the run's posts, without their labels, their images beside them."""
    rows = records((small_run.parent / "data" / "manifest.jsonl").read_text())[:10]
    (tmp_path / "images").symlink_to(small_run.parent / "data" / "images")
    for row in rows:
        row.pop("label")
        row["images"] = [f"copied/{name.rpartition('/')[2]}" for name in row.get("images", [])]
        for name in row["images"]:
            (tmp_path / "copied").mkdir(exist_ok=True)
            shutil.copy(small_run.parent / "data" / "images" / name.rpartition("/")[2], tmp_path / name)
    file = tmp_path / "new.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_labels_are_those_of_the_best_model(small_run, manifest, tmp_path, capsys):
    from backbones import load_backbone

    out = tmp_path / "labels.jsonl"
    assert main(["predict", str(small_run), str(manifest), "--out", str(out)]) == 0
    assert "10 posts labelled" in capsys.readouterr().out
    told = records(out.read_text())
    posts = read_manifest(manifest).posts
    assert [one["id"] for one in told] == [post.id for post in posts]
    table = extract_features(posts, load_backbone("minilm_efficientnet"), small_run.parent / "cache")
    logits = load_head(small_run / "best" / "model.safetensors")[0].logits(table.rows(range(10)))[:, 1]
    assert [one["label"] for one in told] == [
        "invitation" if logit > 0 else "advertisement" for logit in logits
    ]
    for one, logit in zip(told, logits.tolist(), strict=True):
        assert set(one["probabilities"]) == {"invitation", "advertisement"}
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert one["probability"] == max(one["probabilities"].values())
        assert (one["probabilities"]["invitation"] > 0.5) == (logit > 0)
    assert sorted(path.name for path in tmp_path.glob("labels*")) == ["labels.jsonl"]


def test_what_cannot_be_read_is_left_out_with_its_reason(copied, manifest, tmp_path, capsys):
    recipe = by_hand(RunFolder(copied)).recipe_path
    recipe.write_text(recipe.read_text().replace("max_bad_share = 0.05", "max_bad_share = 0.3"))
    picture = tmp_path / next(row["images"][0] for row in records(manifest.read_text()) if row["images"])
    picture.write_bytes(picture.read_bytes()[:200])  # the header is sound, the rest is gone
    with manifest.open("a") as file:
        file.write(json.dumps({"id": "em\x1bpty"}) + "\n")
    out = tmp_path / "labels.jsonl"
    assert main(["predict", str(copied), str(manifest), "--out", str(out)]) == 0
    beside = records((tmp_path / "labels.jsonl.quarantine.jsonl").read_text())
    assert [one["kind"] for one in beside] == ["image", "row"]  # in the order of the manifest
    assert len(records(out.read_text())) == 9
    err = capsys.readouterr().err
    assert "2 posts left out" in err
    assert "line 11" in err
    assert "\x1b" not in err


def test_too_much_to_leave_out_stops_it_and_writes_nothing(copied, manifest, tmp_path, capsys):
    with manifest.open("a") as file:
        file.write("{}\n" * 3)
    out = tmp_path / "labels.jsonl"
    assert main(["predict", str(copied), str(manifest), "--out", str(out)]) == 2
    assert "3 of 13 posts" in capsys.readouterr().err
    assert not out.exists()


def test_standard_output_carries_records_alone(small_run, manifest, capsys):
    assert main(["predict", str(small_run), str(manifest), "--out", "-"]) == 0
    assert len(records(capsys.readouterr().out)) == 10


@pytest.mark.parametrize("key", ["backbone", "classes"])
def test_a_run_of_another_backbone_or_without_classes_is_refused(copied, manifest, tmp_path, key, capsys):
    environment = json.loads((copied / "environment.json").read_text())
    if key == "classes":
        del environment["classes"]
    else:
        environment["identity"]["backbone"] = "0" * 64
    checksums.write_json(copied / "environment.json", environment)
    assert main(["predict", str(copied), str(manifest), "--out", str(tmp_path / "out")]) == 2
    assert {"backbone": "000000000000", "classes": "names no classes"}[key] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_workers_label_as_this_process_does(small_run, manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(OnRay, "map", across_processes)
    rows = [row | {"text": f"{row['text']} today"} for row in records(manifest.read_text())]
    # no features of these are in the run's cache: computed in other batches, they differ in the last bit
    manifest.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "bad"}]))
    told = []
    for name, more in {
        "here": [],
        "there": ["--ray", "local", "--ray-cpus", str(torch.get_num_threads())],
    }.items():
        out = tmp_path / f"{name}.csv"
        words = ["predict", str(small_run), str(manifest), "--out", str(out), "--max-bad-share", "1", *more]
        assert main(words) == 0
        beside = out.with_name(f"{out.name}.quarantine.jsonl")
        told.append((out.read_bytes(), beside.read_bytes(), capsys.readouterr().out.replace(name, "")))
    assert told[0] == told[1]
    assert told[0][0].count(b"\n") == 11


def test_predictions_in_files_of_so_many_posts(small_run, manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(OnRay, "map", across_processes)
    rows = [row | {"text": f"{row['text']} today"} for row in records(manifest.read_text())]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "bad"}]))
    (tmp_path / "real").mkdir()
    (tmp_path / "there").symlink_to("real")  # a folder that is there and empty, through a link
    words = ["predict", str(small_run), str(manifest), "--max-bad-share", "1", "--out"]
    assert main([*words, str(tmp_path / "one.jsonl")]) == 0
    for name, more in {
        "here": [],
        "there": ["--ray", "local", "--ray-cpus", str(torch.get_num_threads())],
    }.items():
        out = tmp_path / name
        assert main([*words, str(out), "--rows-per-file", "4", *more]) == 0
        assert f"10 posts labelled in {out.resolve()}" in capsys.readouterr().out
        files = sorted(out.iterdir())
        assert [file.name for file in files] == [f"part-{number:05}.jsonl" for number in range(3)]
        assert [file.read_bytes().count(b"\n") for file in files] == [4, 4, 2]
        assert b"".join(file.read_bytes() for file in files) == (tmp_path / "one.jsonl").read_bytes()
        [beside] = tmp_path.glob(f"{out.resolve().name}.quarantine.jsonl")
        assert [row["id"] for row in records(beside.read_text())] == ["bad"]


@pytest.mark.parametrize(
    ("out", "rows", "told"),
    [
        ("new", "0", "'--rows-per-file': Input should be greater than or equal to 1"),
        ("new", "many", "'--rows-per-file': Input should be a valid integer"),
        ("-", "4", "--out - is standard output; with --rows-per-file it is a folder"),
        ("a.csv", "4", "is called as a file; with --rows-per-file it is a folder"),
        ("file", "4", "is a file; with --rows-per-file it is a folder"),
        (".", "4", "holds files already, and no unfinished command's"),
        ("/", "4", "--out / is no folder to fill"),
        ("s3://bucket/new", "4", "a URL (s3://...) stands where a path"),
    ],
)
def test_a_folder_that_cannot_be_filled_is_refused_before_a_model_is_opened(  # noqa: PLR0917 -- by name
    small_run, manifest, tmp_path, monkeypatch, capsys, out, rows, told
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("selftrain.serving.load_predictor.load_predictor", None)
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    words = ["predict", str(small_run), str(manifest), "--out", out, "--rows-per-file", rows]
    for order in (words, [*words[:3], *words[5:], *words[3:5]]):
        assert main(order) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_is_refused_without_files_of_so_many_posts(small_run, manifest, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    assert main(["predict", str(small_run), str(manifest), "--out", str(tmp_path / "there")]) == 2
    assert "is a folder; expected a file to write" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)

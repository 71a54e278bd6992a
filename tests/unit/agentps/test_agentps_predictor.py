"""A trained model behind the contract of serving, and predictions of any number of posts."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import torch
from agentps_helpers import training_folder
from PIL import Image
from ray_helpers import across_processes

from selftrain.agentps import evaluate
from selftrain.agentps import predict as predicting
from selftrain.agentps.checkpoint import load
from selftrain.agentps.model import Collator, part_sizes
from selftrain.agentps.predict import PREDICTED_TOKENS, predict
from selftrain.agentps.train import train_agentps
from selftrain.cli import main
from selftrain.data.posts import Post
from selftrain.engine.on_ray import OnRay
from selftrain.errors import ModelError, RunStateError
from selftrain.serving import streams
from selftrain.serving.load_predictor import load_predictor


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = training_folder(tmp_path_factory.mktemp("predictor"), frames=2)
    changes = [f'data.task="{place / "task.toml"}"', "training.epochs=1"]
    train_agentps(
        place / "posts.jsonl", place / "model", recipe=place / "recipe.toml", overrides=changes, bar=False
    )
    return place


@pytest.mark.parametrize("field", ["rank", "hidden"])
def test_settings_that_ask_for_more_than_the_weights_are_said(place, field, tmp_path):
    folder = shutil.copytree(place / "model", tmp_path / "model")
    (folder / "checksums.json").unlink()
    about = json.loads((folder / "agentps.json").read_text())
    about["architecture"][field] = 1 << 30
    (folder / "agentps.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=r"model\.safetensors holds adapters of rank \[4\]"):
        load(folder)


def test_a_model_is_a_scorer(place):
    predictor = load_predictor(place / "model")
    assert (predictor.kind, predictor.name, predictor.classes, predictor.positive) == (
        "agentps",
        "model",
        ("rude", "kind"),
        "rude",
    )
    posts = [
        Post("same", "awful day"),
        Post("same", "lovely day", (place / "red.png",)),
        Post("x", "", (place / "gone.png",)),
    ]
    found = predictor.predict(posts)
    assert [bool(one.reason) for one in found] == [False, False, True]
    assert "gone.png" in found[2].reason
    for one in found[:2]:
        assert one.probs[one.label] == max(one.probs.values())
        assert set(one.process) == {"insult", "tone"}
    by_command = place / "predicted.jsonl"
    assert (
        main(
            ["agentps", "predict", str(place / "model"), str(place / "posts.jsonl"), "--out", str(by_command)]
        )
        == 0
    )
    rows = {row["id"]: row for row in map(json.loads, by_command.read_text().splitlines())}
    manifest = map(json.loads, (place / "posts.jsonl").read_text().splitlines())
    given = [Post(r["id"], r["text"], tuple(place / one for one in r.get("images", []))) for r in manifest]
    for post, one in zip(given, predictor.predict(given), strict=True):
        assert one.probs == pytest.approx(rows[post.id]["probabilities"], abs=1e-4)


def test_a_device_that_torch_lacks_is_told_in_one_line(place, tmp_path, capsys):
    words = ["agentps", "predict", str(place / "model"), str(place / "posts.jsonl")]
    for device in ("gpu", "meta", "cuda:x"):
        assert main([*words, "--out", str(tmp_path / "scored.jsonl"), "--device", device]) == 2
        told = f"error: --device: device {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'\n"
        assert capsys.readouterr().err == told
    both = ["--device", "cpu", "--server", "http://127.0.0.1:9"]
    assert main([*words, "--out", str(tmp_path / "scored.jsonl"), *both]) == 2
    assert "leave out --device, or --server" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_common_command_predicts_with_it_too(place, tmp_path):
    model, manifest = str(place / "model"), str(place / "posts.jsonl")
    for command in (["predict"], ["agentps", "predict"]):
        assert main([*command, model, manifest, "--out", str(tmp_path / "-".join(command))]) == 0
    found, expected = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("predict", "agentps-predict")
    )
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)
        assert set(one["process"]) == {"insult", "tone"}


@pytest.mark.parametrize("words", [("agentps", "predict"), ("predict",)])
def test_a_models_own_files_are_not_written_over(place, words, tmp_path, capsys):
    """Its thresholds could never be set anew: the answers on its validation posts would be gone."""
    folder = shutil.copytree(place / "model", tmp_path / "model")
    file = folder / "validation.jsonl"
    before = file.read_bytes()
    assert main([*words, str(folder), str(place / "posts.jsonl"), "--out", str(file)]) == 2
    assert "validation.jsonl is a file that is read, and would be lost" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_scores_in_files_of_so_many_posts(place, tmp_path, capsys):
    args = ["agentps", "predict", str(place / "model"), str(place / "posts.jsonl"), "--out"]
    assert main([*args, str(tmp_path / "one.jsonl")]) == 0
    assert main([*args, str(tmp_path / "parts"), "--rows-per-file", "25"]) == 0
    assert f"60 posts scored in {tmp_path / 'parts'}" in capsys.readouterr().out
    files = sorted((tmp_path / "parts").iterdir())
    assert [file.read_bytes().count(b"\n") for file in files] == [25, 25, 10]
    assert b"".join(file.read_bytes() for file in files) == (tmp_path / "one.jsonl").read_bytes()
    assert main([*args, str(tmp_path / "one.jsonl"), "--rows-per-file", "25"]) == 2
    assert "is a file; with --rows-per-file it is a folder" in capsys.readouterr().err


def test_workers_get_the_same_model_and_give_the_same_bytes(place, tmp_path, monkeypatch):
    monkeypatch.setattr(OnRay, "map", across_processes)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # this process is none of theirs
    model, manifest = str(place / "model"), str(place / "posts.jsonl")
    found = set()
    for name, more in {"here": [], "there": ["--ray", "local"], "common": ["--ray", "local"]}.items():
        command = ["predict"] if name == "common" else ["agentps", "predict"]
        assert main([*command, model, manifest, "--out", str(tmp_path / name), *more]) == 0
        found.add((tmp_path / name).read_bytes())
    assert len(found) == 1
    assert found.pop().count(b"\n") == len((place / "posts.jsonl").read_text().splitlines())


def test_the_base_is_found_from_wherever_a_model_is_opened(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    words = ['data.task="task.toml"', 'model.base="base"', "training.epochs=1"]
    train_agentps("posts.jsonl", tmp_path / "model", recipe="recipe.toml", overrides=words, bar=False)
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path / "model").settings.base == str(place / "base")


def test_validation_scores_are_those_of_the_kept_epoch(place):
    validation = load_predictor(place / "model").validation()
    rows = [json.loads(line) for line in (place / "model" / "validation.jsonl").read_text().splitlines()]
    assert validation.labels.tolist() == [int(row["truth"]["final"] == "rude") for row in rows]
    assert validation.probs.tolist() == [row["probabilities"]["rude"] for row in rows]


def test_it_predicts_in_the_precision_that_its_thresholds_were_set_in(place, tmp_path):
    loaded = load(place / "model")
    assert loaded.about["precision"] == "float32"
    posts = [Post("a", "awful day"), Post("b", "lovely day", (place / "red.png",))]
    exact = [one.answers[-1] for one in predict(loaded, posts)]
    halved = loaded._replace(about=loaded.about | {"precision": "bfloat16"})
    rounded = [one.answers[-1] for one in predict(halved, posts)]
    assert not np.array_equal(exact, rounded)
    assert np.allclose(exact, rounded, atol=0.05)


def test_its_fingerprint_follows_its_weights(place, tmp_path):
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(place / "model", copy)
    assert load(copy).fingerprint == load(place / "model").fingerprint
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(RunStateError, match=r"model\.safetensors is damaged"):
        load(copy)
    (copy / "checksums.json").unlink()
    assert load(copy).fingerprint != load(place / "model").fingerprint


def test_an_album_of_no_and_of_forty_pictures(place, tmp_path):
    loaded = load(place / "model")
    pictures = []
    for i in range(40):
        pictures.append(tmp_path / f"{i}.png")
        Image.new("RGB", (30, 30), (6 * i, 0, 0)).save(pictures[-1])
    found = list(predict(loaded, [Post("none", "words"), Post("forty", "words", tuple(pictures))]))
    assert [one.reason for one in found] == ["", ""]
    assert not np.allclose(found[0].answers[-1], found[1].answers[-1])


def test_an_answer_is_the_same_to_the_bit_whatever_is_asked_beside_it(place):
    predictor = load_predictor(place / "model")
    texts = ["awful day", "lovely", "day " * 30, "awful " + "word " * 60, "", "Ünï 😀", "a lovely day " * 3]
    posts = [Post(f"t{n}", text) for n, text in enumerate(texts)]
    posts += [Post("p", "", (place / "red.png",)), Post("b", "awful", (place / "red.png",) * 3)]
    posts += [Post("x", "", (place / "gone.png",))]
    expected = {one.id: one for one in predictor.predict(posts)}
    for order in range(10):
        draw = random.Random(order)
        mixed = draw.sample(posts, draw.randint(1, len(posts)))
        cut = draw.randint(0, len(mixed))
        for part in (mixed[:cut], mixed[cut:]):
            assert [expected[post.id] for post in part] == predictor.predict(part)


def test_no_more_posts_are_read_ahead_than_a_few_batches(place):
    loaded, read, ahead = load(place / "model"), 0, []

    def source():
        nonlocal read
        for read in range(1, 401):
            yield Post(f"p{read}", f"day {read}")

    for given, one in enumerate(predict(loaded, source(), batch_size=4)):
        ahead.append(read - given)
        assert one.example.id == f"p{given + 1}"
    assert len(ahead) == 400
    assert max(ahead) <= 4 * 16


def test_labels_of_another_task_are_carried_not_judged(place):
    loaded = load(place / "model")
    [one] = predict(loaded, [Post("a", "awful", label="spam", process={"tone": "loud", "colour": "red"})])
    assert not one.reason
    assert not any(target.any() for target in one.example.targets)


# ---- measured -------------------------------------------------------------------------------------------


def written(place, folder, *, unread=20, bad=0, split=None):
    """Thirty posts with labels and a picture, the last `unread` of these cut; then rows that become none."""
    folder.mkdir()
    whole = (place / "red.png").read_bytes()
    rows = []
    for n in range(30):
        (folder / f"{n}.png").write_bytes(whole if n < 30 - unread else whole[:60])
        label = "rude" if n % 2 else "kind"
        rows.append({"id": f"p{n}", "text": f"day {n}", "images": [f"{n}.png"], "label": label})
        if split:
            rows[-1]["split"] = split(n)
    rows[5:5] = [{"id": f"bad{n}", "text": "day", "label": "spam"} for n in range(bad)]
    (folder / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "posts.jsonl"), folder / "figures"


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_evaluation_keeps_to_its_limits_for_pictures_that_cannot_be_read(
    place, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(streams, "CHUNK", 8)
    manifest, out = written(place, tmp_path / "posts")
    args = ["agentps", "evaluate", str(place / "model"), manifest, "--out", str(out)]
    assert main([*args, "--max-bad-rows", "0", "--max-bad-share", "0"]) == 2
    told = capsys.readouterr().err
    assert f"error: {manifest}: 6 of 16 posts (37.50%) are set aside, at most 0 rows and 0.00%" in told
    assert "line 11, id 'p10': " in told
    assert "the same command with more tolerance goes on; to have corrected posts read anew, give" in told
    assert "--max-bad-rows 6 --max-bad-share 0.38" in told
    assert not [one for one in out.iterdir() if one.name in {"metrics.json", "quarantine.jsonl"}]
    assert main([*args, "--max-bad-share", "0.6"]) == 2  # a share is judged once all posts are there
    assert "20 of 30 posts (66.67%)" in capsys.readouterr().err
    assert not (out / "metrics.json").exists()

    def none(*args, **options):
        assert not list(args[1]), "nothing is scored twice"
        return iter(())

    monkeypatch.setattr("selftrain.agentps.predict.predict", none)
    assert main([*args, "--max-bad-share", "0.67"]) == 0
    assert f"20 posts left out, listed in {out / 'quarantine.jsonl'}:" in capsys.readouterr().err
    listed = lines(out / "quarantine.jsonl")
    assert [(one["kind"], one["line"], one["id"]) for one in listed] == [
        ("image", n + 1, f"p{n}") for n in range(10, 30)
    ]
    assert all(f"{one['line'] - 1}.png" in one["reason"] for one in listed)
    rows = lines(out / "validation.jsonl")
    assert [row["id"] for row in rows if "reason" in row] == [one["id"] for one in listed]
    assert len(rows) == 30
    assert json.loads((out / "metrics.json").read_text())["questions"]["final"]["posts"] == 10
    assert {one.name for one in out.iterdir() if not one.name.startswith(".")} == {
        "metrics.json", "quarantine.jsonl", "report.html", "task.toml", "validation.jsonl",
    }  # fmt: skip


def test_rows_and_pictures_that_cannot_be_read_count_together(place, tmp_path, capsys):
    manifest, out = written(place, tmp_path / "posts", unread=2, bad=3)
    args = ["agentps", "evaluate", str(place / "model"), manifest, "--out", str(out), "--max-bad-share", "1"]
    assert main([*args, "--max-bad-rows", "4"]) == 2
    assert "5 of 33 posts" in capsys.readouterr().err
    assert main([*args, "--max-bad-rows", "5"]) == 0
    listed = lines(out / "quarantine.jsonl")
    assert [(one["kind"], one["line"], one["id"]) for one in listed] == [
        ("row", 6, "bad0"), ("row", 7, "bad1"), ("row", 8, "bad2"),
        ("image", 32, "p28"), ("image", 33, "p29"),
    ]  # fmt: skip
    assert "'spam'" in listed[0]["reason"]
    manifest, _ = written(place, tmp_path / "good", unread=0)
    assert main(["agentps", "evaluate", str(place / "model"), manifest, "--out", str(out)]) == 0
    assert not (out / "quarantine.jsonl").exists(), "of an earlier time"


def test_of_a_split_its_own_pictures_count_and_rows_against_the_manifest(place, tmp_path, capsys):
    manifest, out = written(
        place, tmp_path / "posts", unread=4, bad=3, split=lambda n: "test" if n >= 20 else "train"
    )
    args = ["agentps", "evaluate", str(place / "model"), manifest, "--out", str(out), "--split", "test"]
    assert main([*args, "--max-bad-share", ".39"]) == 2
    assert "4 of 10 posts (40.00%)" in capsys.readouterr().err
    assert main([*args, "--max-bad-share", ".08"]) == 2
    assert "3 of 33 rows (9.09%)" in capsys.readouterr().err
    assert main([*args, "--max-bad-share", ".4"]) == 0
    assert "7 posts left out" in capsys.readouterr().err
    kinds = [one["kind"] for one in lines(out / "quarantine.jsonl")]
    assert [kind for kind in kinds if kind != "note"] == ["row"] * 3 + ["image"] * 4


# ---- on a GPU, without one ------------------------------------------------------------------------------


def test_a_gpu_computes_no_more_tokens_at_once_than_are_set(place, monkeypatch):
    loaded, given = load(place / "model"), {}

    class Moved:
        def to(self, device):
            given["device"] = device

    def watched(model, collator, posts, **options):
        given.update(options)
        return iter(())

    monkeypatch.setattr(predicting, "score", watched)
    built = loaded.built._replace(model=Moved())
    assert not list(predict(loaded._replace(built=built), [], batch_size=64, device="cuda"))
    assert (given["device"], given["batch_size"], given["tokens"]) == ("cuda", 64, PREDICTED_TOKENS)
    album, short = 11_759, 200
    assert part_sizes([album] * 16, 16, PREDICTED_TOKENS) == [1] * 16
    assert part_sizes([short] * 64, 64, PREDICTED_TOKENS) == [64]
    assert part_sizes([1024] * 16, 16, PREDICTED_TOKENS) == [16]


@pytest.mark.parametrize(("pictures", "asked", "expected"), [(0, None, 0), (2, None, 7), (0, 3, 3)])
def test_processes_read_ahead_only_where_there_are_pictures(place, monkeypatch, pictures, asked, expected):
    built, given = load(place / "model").built, []
    monkeypatch.setattr(evaluate, "workers_for", lambda kind: 7 if kind == "cuda" else 0)
    monkeypatch.setattr(
        evaluate, "read_ahead", lambda function, items, workers, pin: given.append(workers) or iter(())
    )
    collator = built.collator if pictures else Collator(built.collator.reader, None)
    assert not list(evaluate.score(built.model, collator, [], device="cuda", workers=asked))
    assert given == [expected]

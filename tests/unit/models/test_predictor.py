"""A real run as a predictor, and the same classifier out of an ONNX file, with and without torch."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from report_helpers import by_hand

from selftrain._util.numeric import decide
from selftrain.agentps.predict import AgentPSPredictor
from selftrain.agentps.served import ServedModel
from selftrain.cli import main
from selftrain.data.manifest import read_manifest
from selftrain.data.posts import Post
from selftrain.errors import DataError, RunStateError, ServingError
from selftrain.models.calibration import Calibration, probabilities
from selftrain.models.head import FORMATS
from selftrain.models.model_file import read_model, write_model
from selftrain.models.onnx_export import export_onnx
from selftrain.models.onnx_predictor import OnnxPredictor
from selftrain.models.run_predictor import RunPredictor
from selftrain.serving.batching import Batcher
from selftrain.serving.load_predictor import KINDS, load_predictor
from selftrain.store import checksums
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import numbered

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def predictor(small_run):
    return load_predictor(small_run)


@pytest.fixture(scope="module")
def manifest(small_run):
    return small_run.parent / "data" / "manifest.jsonl"


@pytest.fixture(scope="module")
def posts(manifest):
    return read_manifest(manifest).posts[:40]


def positive(results, name="invitation"):
    return np.array([one.probs[name] for one in results])


def test_a_run_scores_as_predict_does(small_run, predictor, manifest, posts, capsys):
    assert main(["predict", str(small_run), str(manifest), "--out", "-"]) == 0
    told = {row["id"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert len(told) == len(manifest.read_text().splitlines())
    results = predictor.predict(posts)
    for post, result in zip(posts, results, strict=True):
        assert result.label == told[post.id]["label"]
        assert result.id == post.id
        assert result.probs[result.label] == max(result.probs.values())
        assert dict(result.probs) == pytest.approx(told[post.id]["probabilities"], abs=5e-6)
        assert result.process == {}
    assert (predictor.kind, predictor.name, predictor.positive) == ("classifier", "run", "invitation")
    assert predictor.classes == ("invitation", "advertisement")
    assert predictor.predict([]) == []


def test_its_validation_scores_are_those_of_the_best_round(small_run, predictor):
    rows = map(json.loads, (small_run / "best" / "scores.jsonl").read_text().splitlines())
    stored = [
        (row["label"] == "invitation", row["logits"][1]) for row in rows if row["split"] == "validation"
    ]
    labels, probs = predictor.validation()
    assert labels.tolist() == [label for label, _ in stored]
    assert probs == pytest.approx(1 / (1 + np.exp(-np.array([logit for _, logit in stored]))), abs=1e-6)
    # and they are what the model says of those posts
    metrics = json.loads((small_run / "best" / "metrics.json").read_text())
    assert len(labels) == metrics["validation"]["posts"]


def test_a_post_that_cannot_be_encoded_does_not_move_the_others(predictor, posts, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    broken = Post("broken", "words", (tmp_path / "cut.png",))
    results = predictor.predict([posts[0], broken, posts[1]])
    assert not results[1].label
    assert "cut.png" in results[1].reason
    assert positive([results[0], results[2]]) == pytest.approx(
        positive(predictor.predict(posts[:2])), abs=1e-6
    )


def test_a_video_is_not_passed_over_in_silence(predictor, posts, tmp_path):
    results = predictor.predict([Post("v", "words", video=tmp_path / "v.mp4"), posts[0]])
    assert not results[0].label
    assert "video" in results[0].reason
    assert results[1].label


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["text"], r"posts\[0\] is a str; expected a post"),
        ("text", "posts is a str; expected a list of posts"),
        (Post("n1", "text"), "posts is a Post; expected a list of posts"),
        ([Post("n1"), Post("n2", None)], r"posts\[1\].text is a NoneType; expected a str"),
        ([Post("n1", "text", "a.png")], r"posts\[0\].images is a str; expected a tuple"),
        ([Post("n1", "text", ("a.png",))], r"posts\[0\] has 'a.png', a str, .* expected a pathlib.Path"),
        ([Post("n1", "text", video="a.mp4")], r"posts\[0\] has 'a.mp4', a str, .* expected a pathlib.Path"),
    ],
)
def test_what_is_no_post_is_refused_by_its_place(given, told, predictor, exported):
    cached = replace(predictor, cached=True)  # rows by id
    asked = AgentPSPredictor.__new__(AgentPSPredictor), ServedModel.__new__(ServedModel)
    for model in (predictor, cached, load_predictor(exported), *asked):
        with pytest.raises(DataError, match=told):
            model.predict(given)


def test_the_fingerprint_follows_the_weights(small_run, predictor, tmp_path):
    copied = shutil.copytree(small_run, tmp_path / "run", symlinks=True)
    assert load_predictor(copied).fingerprint == predictor.fingerprint
    by_hand(RunFolder(copied))
    best = RunFolder(copied).best_round()
    other = next(n for n in range(3) if n != best)
    weights = RunFolder(copied).round_path(other) / "model.safetensors"
    shutil.copy(weights, RunFolder(copied).round_path(best) / "model.safetensors")
    assert load_predictor(copied).fingerprint != predictor.fingerprint


def test_every_kind_of_folder_names_what_opens_it():
    for module, name in KINDS.values():
        opened = getattr(import_module(module), name)
        assert callable(opened.load)
        assert callable(opened.predict)


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty folder", "a folder of something else"])
def test_what_is_no_model_is_refused_with_what_was_found(what, tmp_path):
    path = tmp_path / "model"
    if what == "a file":
        path.write_text("x")
    elif what != "nothing":
        path.mkdir()
    if what.endswith("else"):
        (path / "config.json").touch()
    found = {"nothing": "not there", "a file": "is a file", "an empty folder": "is empty"}
    with pytest.raises(ServingError, match=found.get(what, "a folder with config.json; expected a run")):
        load_predictor(path)


def test_a_model_of_another_version_is_told_with_what_is_expected_and_what_to_do(small_run, tmp_path):
    copied = shutil.copytree(small_run, tmp_path / "run", symlinks=True)
    file = RunFolder(copied).round_path(RunFolder(copied).best_round()) / "model.safetensors"
    tensors, header = read_model(file, FORMATS)
    write_model(file, header | {"format": "selftrain-head-0"}, tensors)
    checksums.note_written(file)
    with pytest.raises(RunStateError, match=r"one of another version\..* train it again") as refused:
        load_predictor(copied)
    assert all(f"'{kind}'" in str(refused.value) for kind in ("selftrain-head-0", *FORMATS))


def test_a_run_without_a_round_is_refused(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "run", symlinks=True, ignore=shutil.ignore_patterns("metrics.json"))
    with pytest.raises(RunStateError, match="no finished round"):
        load_predictor(tmp_path / "run")


# ---- ONNX -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert main(["export", str(small_run), "--onnx", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def kinds(posts):
    """Batches of every kind: words, pictures, both, albums, one post and many."""
    words = [
        Post(f"w{n}", text) for n, text in enumerate(("short", "a longer text of nine words, which is fine"))
    ]
    images = [image for post in posts for image in post.images]
    pictures = [Post("p", "", (images[0],)), Post("q", " \n", (images[1],))]
    both = [Post("b", "Flea market on Sunday", (images[2],)), Post("c", "ünïcödé 😀 " * 200, (images[3],))]
    albums = [Post("a", "An album", tuple(images[:16])), Post("d", "", tuple(images[3:6]))]
    one_by_one = [[post] for post in (*words, *pictures, *both, *albums)]
    return [words, pictures, both, albums, [*albums, *words, *pictures, *both], list(posts), *one_by_one]


def test_onnx_gives_the_scores_of_the_run_for_every_kind_of_batch(predictor, exported, kinds):
    onnx = load_predictor(exported)
    for posts in kinds:
        expected, found = predictor.predict(posts), onnx.predict(posts)
        assert np.abs(positive(expected) - positive(found)).max() < 1e-4, posts
        assert [one.label for one in expected] == [one.label for one in found]
    # they tell posts apart, or equal scores would say nothing
    assert np.ptp(positive(predictor.predict(kinds[5]))) > 0.2
    assert (onnx.fingerprint, onnx.classes, onnx.name) == (
        predictor.fingerprint,
        predictor.classes,
        predictor.name,
    )
    assert onnx.validation() is None


def test_equals_are_decided_as_the_loop_decides(predictor, posts, tmp_path, monkeypatch):
    head = copy.deepcopy(predictor.head)
    torch.nn.init.zeros_(head.layers[-1].weight)
    torch.nn.init.zeros_(head.layers[-1].bias)
    level = replace(predictor, head=head, calibration=Calibration(), cut=None)
    monkeypatch.setattr(RunPredictor, "load", lambda _: level)
    export_onnx(tmp_path, tmp_path / "level.onnx")
    for model in (level, OnnxPredictor(tmp_path / "level.onnx")):
        (found,) = model.predict(posts[:1])
        assert set(found.probs.values()) == {0.5}
        assert found.label == numbered(level.classes)[decide(np.zeros((1, 2)))[0]]


@pytest.mark.parametrize("kind", ["run", "onnx"])
def test_a_score_does_not_hang_on_the_posts_beside(kind, predictor, exported, kinds):
    model = predictor if kind == "run" else load_predictor(exported)
    different = [post for [post] in kinds[6:]]
    table = [replace(post, id=f"{n} {post.id}") for n in range(3) for post in (*different, *kinds[5])]
    alone = {post.id: model.predict([post])[0].probs for post in (*different, *kinds[5])}
    assert len({tuple(probs.values()) for probs in alone.values()}) > 20
    for one in model.predict(table):
        assert one.probs == alone[one.id.partition(" ")[2]]


def test_a_server_gives_the_bits_of_predict(predictor, kinds):
    posts = [post for [post] in kinds[6:]] + list(kinds[5])
    batcher = Batcher(
        lambda: predictor, max_batch=7, max_wait=0.01, max_queue=1000, observe=lambda posts, seconds: None
    )
    batcher.start()
    waiting = [(post, batcher.submit([post], client=f"{n % 5}")) for n, post in enumerate(posts)]
    together = batcher.submit(posts)
    alone = [predictor.predict([post])[0] for post, _ in waiting]
    assert [scores.result(120)[0] for _, scores in waiting] == alone == together.result(120)
    batcher.close()


def test_the_command_predicts_with_an_exported_file_too(exported, predictor, posts, tmp_path):
    some, out = tmp_path / "some.jsonl", tmp_path / "out.jsonl"
    some.write_text("".join(json.dumps({"id": p.id, "text": p.text}) + "\n" for p in posts if p.text))
    assert main(["predict", str(exported), str(some), "--out", str(out)]) == 0
    found = [json.loads(line)["probabilities"]["invitation"] for line in out.read_text().splitlines()]
    expected = predictor.predict([Post(post.id, post.text) for post in posts if post.text])
    assert found == pytest.approx(positive(expected), abs=1e-4)


def test_onnx_reports_what_it_cannot_read(exported, posts, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    results = OnnxPredictor(exported).predict([Post("x", "", (tmp_path / "cut.png",)), posts[0]])
    assert results[0].reason
    assert results[1].label
    assert OnnxPredictor(exported).predict([Post("x", "", (tmp_path / "no.png",))])[0].reason


def test_pictures_of_odd_shapes_are_cut_as_the_backbone_cuts_them(predictor, exported, tmp_path):
    from PIL import Image

    draw = np.random.default_rng(0)
    shapes = [(1, 1), (223, 97), (97, 223), (640, 361), (225, 224), (1000, 333)]
    posts = []
    for number, (width, height) in enumerate(shapes):
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg" if number % 2 else tmp_path / f"{number}.png")
        file = tmp_path / (f"{number}.jpg" if number % 2 else f"{number}.png")
        posts.append(Post(str(number), "", (file,)))
    expected, found = predictor.predict(posts), load_predictor(exported).predict(posts)
    assert np.abs(positive(expected) - positive(found)).max() < 1e-4


def test_a_model_in_one_file_predicts_from_the_command_line_and_is_not_written_over(
    exported, manifest, tmp_path, capsys
):
    assert main(["predict", str(exported), str(manifest), "--out", str(tmp_path / "scored.jsonl")]) == 0
    assert (tmp_path / "scored.jsonl").exists()
    before = exported.read_bytes()
    assert main(["predict", str(exported), str(manifest), "--out", str(exported)]) == 2
    assert exported.read_bytes() == before
    assert str(exported) in capsys.readouterr().err


def test_onnx_predicts_without_torch(exported, predictor, manifest, posts, tmp_path):
    program = (
        "import sys, json\n"
        "class Refuses:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'timm', 'sklearn', 'scipy'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuses())\n"
        "from pathlib import Path\n"
        "import selftrain as st\n"
        "posts = [st.Post('x', text, tuple(map(Path, images))) for text, images in json.load(sys.stdin)]\n"
        "results = st.load_predictor(sys.argv[1]).predict(posts)\n"
        "print(json.dumps([one.probs['invitation'] for one in results]))\n"
    )
    given = json.dumps([[post.text, list(map(str, post.images))] for post in posts[:10]])
    result = subprocess.run(
        [sys.executable, "-c", program, str(exported)], input=given, capture_output=True, text=True,
        check=True, timeout=120, cwd=tmp_path, env={"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert json.loads(result.stdout) == pytest.approx(positive(predictor.predict(posts[:10])), abs=1e-4)


def test_the_head_alone_takes_features(small_run, predictor, posts, tmp_path):
    import onnxruntime

    export_onnx(small_run, tmp_path / "head.onnx", head_only=True)
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx")
    rows = predictor.encode(posts).rows
    for size in (1, 7, len(posts)):
        logits, odds = session.run(["logits", "probabilities"], {"features": rows[:size]})
        expected = predictor.classify(rows[:size])
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        np.testing.assert_allclose(odds, probabilities(expected), atol=1e-6)
        np.testing.assert_allclose(odds.sum(1), 1, atol=1e-6)
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["selftrain"])
    assert metadata["classes"] == list(predictor.classes)
    assert metadata["fingerprint"] == predictor.fingerprint
    layout = predictor.backbone.layout
    assert metadata["layout"]["image"] == [layout.image.start, layout.image.stop]
    with pytest.raises(ServingError, match="head alone"):
        OnnxPredictor(tmp_path / "head.onnx")


def test_what_is_no_file_of_ours_is_refused(small_run, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    (tmp_path / "a.onnx").write_bytes(b"nothing")
    with pytest.raises(ServingError, match="cannot be read as an ONNX file"):
        load_predictor(tmp_path / "a.onnx")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(ServingError, match="has the format None"):
        load_predictor(tmp_path / "b.onnx")


def test_an_agentps_model_is_not_exported(tmp_path, capsys):
    (tmp_path / "agentps.json").write_text("{}")
    assert main(["export", str(tmp_path), "--onnx", str(tmp_path / "m.onnx")]) == 2
    assert "is an AgentPS model; only a run's classifier is exported" in capsys.readouterr().err


def test_an_export_without_the_extra_says_what_to_install(small_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(small_run), "--onnx", str(tmp_path / "m.onnx")]) == 2
    assert "pip install 'selftrain[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_a_file_that_cannot_be_opened_for_want_of_a_package_says_what_to_install(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ServingError, match=rf"^{name} is not installed: pip install 'selftrain\[onnx\]'"):
        OnnxPredictor(tmp_path / "m.onnx")


def test_opening_a_model_leaves_the_random_state_as_it_was(small_run):
    before = torch.random.get_rng_state()
    load_predictor(small_run)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_thread_is_none(small_run, exported):
    for path in (small_run, exported):
        with pytest.raises(ServingError, match="threads is 0: expected at least 1"):
            load_predictor(path, threads=0)


def test_a_run_of_its_own_trainer_is_not_damaged_but_the_trainers(small_run, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(small_run, copied, symlinks=True)
    (copied / "checksums.json").unlink()
    recipe = copied / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('kind = "head"', 'kind = "mylab:NearestMean"'))
    with pytest.raises(ServingError, match=r"was trained by mylab:NearestMean, a trainer of its own"):
        load_predictor(copied)

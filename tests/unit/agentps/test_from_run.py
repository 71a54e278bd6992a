"""From a finished run to a measured model in one command; the model that answers is in memory."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
from agentps_helpers import training_folder
from annotation_helpers import MemoryBackend, answered, film, paint, rows
from vlm_helpers import pictures_of

from agents.errors import CallFailedError
from selftrain.agentps.dataset import load_posts, read_posts, run_test_posts
from selftrain.agentps.recipe import SourceSettings
from selftrain.annotation import annotate
from selftrain.cli import main
from selftrain.cli.agentps import _ask as ask
from selftrain.store import checksums


@pytest.fixture
def backend(monkeypatch):
    found = MemoryBackend(lambda request: answered("yes" if int(request.affinity[-1]) % 2 else "no"))
    monkeypatch.setattr("selftrain.panels.build_backend", lambda model: found)
    return found


def test_one_command_asks_trains_and_measures(run_with_questions, backend, tmp_path, capsys):
    place, out = training_folder(tmp_path / "base"), tmp_path / "model"
    command = [
        "agentps", "from-run", str(run_with_questions), "--server", "http://127.0.0.1:9", "--out", str(out),
        "--recipe", str(place / "recipe.toml"), "--set", "training.epochs=1", "--set", "model.max_tokens=200",
    ]  # fmt: skip
    assert main([*command, "--token-cap", "200"]) != 0
    assert "token" in capsys.readouterr().err
    assert not (out / "agentps.json").exists()
    before = len(backend.requests)
    assert main(command) == 0

    found = load_posts(SourceSettings(run=run_with_questions), 0)
    unanswered = {post.id for post in (*found.train, *found.validation) if not post.process}
    asked = [request.affinity for request in backend.requests]
    assert set(asked) == unanswered == set(found.final_targets)
    assert len(asked) - before < len(unanswered), "what was paid for before the cap is not paid for again"
    written = rows(out / "answers.jsonl")
    assert {post_id for post_id, row in written.items() if "process_provenance" in row} == unanswered
    tested = json.loads((out / "test" / "metrics.json").read_text())["questions"]
    assert (tested["final"]["posts"], tested["loud"]["posts"]) == (24, 24)
    assert (out / "test" / "report.html").exists()
    assert (out / "report.html").exists()

    asked_until_now = len(backend.requests)
    assert main(command) == 0
    assert len(backend.requests) == asked_until_now
    assert "next:" in capsys.readouterr().out


class CutOffError(Exception):
    """A training that is cut off."""


def test_what_was_answered_stays_whatever_a_server_would_say_now(
    run_with_questions, backend, tmp_path, capsys, monkeypatch
):
    """A few answers fail at first, and would come by now: the training that began without them goes on."""
    failing, say = ["lost"], backend.answer

    def answer(request):
        if failing and request.affinity.endswith("9"):
            raise CallFailedError("busy")
        return say(request)

    backend.answer = answer
    tolerant = partial(annotate.build_questioner, max_failed=1.0)  # of six posts one is more than a tenth
    monkeypatch.setattr(annotate, "build_questioner", tolerant)
    place, out = training_folder(tmp_path / "base"), tmp_path / "model"
    command = [
        "agentps", "from-run", str(run_with_questions), "--server", "http://127.0.0.1:9", "--out", str(out),
        "--recipe", str(place / "recipe.toml"), "--set", "training.epochs=1", "--set", "model.max_tokens=200",
    ]  # fmt: skip

    def killed(*_):
        raise CutOffError

    with monkeypatch.context() as patched:
        patched.setattr("selftrain.agentps.steps.TrainingLog.evaluation", killed)
        with pytest.raises(CutOffError):
            main(command)
    answers = (out / "answers.jsonl").read_bytes()
    assert b"process_missing" in answers
    failing.clear()
    asked = len(backend.requests)
    assert main(command) == 0, capsys.readouterr().err
    assert (len(backend.requests), (out / "answers.jsonl").read_bytes()) == (asked, answers)


def test_a_post_of_blanks_and_fields_that_json_cannot_hold_keep_their_answers(
    run_with_questions, backend, tmp_path
):
    out = tmp_path / "answers.jsonl"
    found = load_posts(SourceSettings(run=run_with_questions), 0)
    paint(tmp_path, "x", 1)
    odd = [replace(found.train[0], id="o7", text="  ", images=(tmp_path / "x-000.png",), process={})]
    odd += [replace(found.train[1], id="o8", extra={"score": float("nan")}, process={})]
    ask(
        found._replace(train=odd, validation=[]),
        annotate.annotation_settings(None, ["http://127.0.0.1:9"]),
        out,
    )
    answered, _ = read_posts(out, found.task, SourceSettings())
    assert {one.id: one.process for one in answered} == {"o7": {"loud": "yes"}, "o8": {"loud": "no"}}


def test_pictures_of_the_runs_test_posts_that_cannot_be_read_keep_to_the_recipes_limits(
    run_with_questions, backend, tmp_path, capsys, monkeypatch
):
    place, out = training_folder(tmp_path / "base", frames=1), tmp_path / "model"
    (tmp_path / "cut.png").write_bytes(b"no picture")

    def spoiled(*args):
        posts = run_test_posts(*args)
        return [replace(one, images=(tmp_path / "cut.png",)) for one in posts[:3]] + posts[3:]

    monkeypatch.setattr("selftrain.agentps.dataset.run_test_posts", spoiled)
    command = ["agentps", "from-run", str(run_with_questions), "--server", "http://127.0.0.1:9"]
    command += ["--recipe", str(place / "recipe.toml"), "--set", "training.epochs=1", "--out", str(out)]
    command += ["--set", "model.variant=vanilla"]
    assert main([*command, "--set", "data.max_bad_rows=2", "--set", "data.max_bad_share=1"]) == 2
    told = capsys.readouterr().err
    assert f"error: the test posts of {run_with_questions}: 3 of 24 posts" in told
    assert "--set data.max_bad_rows=3" in told
    assert not (out / "test" / "metrics.json").exists()
    assert main([*command, "--set", "data.max_bad_rows=3", "--set", "data.max_bad_share=1"]) == 0
    assert [row["line"] for row in rows_of(out / "test" / "quarantine.jsonl")] == [1, 2, 3]
    figures = json.loads((out / "test" / "metrics.json").read_text())["questions"]
    assert figures["final"]["posts"] == 21


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    "change",
    [
        "decisions.lout=f1", "training.weights.lout=2", 'training.class_weights.lout="balanced"',
        "training.class_weights={loud = {lout = 2.0}}",
    ],
)  # fmt: skip
def test_a_question_that_is_not_asked_is_said_before_anything_is_paid_for(
    run_with_questions, backend, tmp_path, capsys, change
):
    command = ["agentps", "from-run", str(run_with_questions), "--server", "http://127.0.0.1:9"]
    assert main([*command, "--out", str(tmp_path / "model"), "--set", change]) == 2
    assert "lout" in capsys.readouterr().err
    assert not backend.requests


def test_a_manifest_in_the_place_of_the_run_is_said(run_with_questions, tmp_path, capsys):
    manifest = run_with_questions.parent / "data" / "manifest.jsonl"
    words = ["agentps", "from-run", str(manifest), "--server", "http://127.0.0.1:9"]
    assert main([*words, "--out", str(tmp_path / "model")]) == 2
    assert "is a file; expected the folder of a finished run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_test_posts_that_their_manifest_has_no_more_are_said_before_anything_is_paid_for(
    run_with_questions, backend, tmp_path, capsys
):
    tested = {post.id for post in run_test_posts(run_with_questions, *of_run(run_with_questions))}
    run = without(run_with_questions, tmp_path, tested)
    command = ["agentps", "from-run", str(run), "--server", "http://127.0.0.1:9"]
    assert main([*command, "--out", str(tmp_path / "model")]) == 2
    told = capsys.readouterr().err
    assert f"{run}: 24 of 24 posts (100.00%) are in no manifest of the run any more" in told
    assert not backend.requests


def of_run(run):
    return load_posts(SourceSettings(run=run), 0).task, SourceSettings()


def without(run, folder, ids):
    """A copy of a run whose manifest lacks some posts by now."""
    copy, before = folder / "run", run.parent / "data" / "manifest.jsonl"
    shutil.copytree(run, copy)
    shutil.copytree(before.parent, folder / "data")
    rows = [line for line in before.read_text().splitlines() if json.loads(line)["id"] not in ids]
    (folder / "data" / "manifest.jsonl").write_text("".join(f"{row}\n" for row in rows))
    recipe = copy / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(before), str(folder / "data" / "manifest.jsonl")))
    checksums.note_written(recipe)
    return copy


def test_posts_of_a_run_that_its_manifest_has_no_more_count_and_are_told(
    run_with_questions, tmp_path, capsys
):
    """Half of them were left out without a word."""
    place, gone = training_folder(tmp_path / "base"), [post.id for post in known_posts(run_with_questions)]
    run, out = without(run_with_questions, tmp_path, gone[:3]), tmp_path / "model"
    command = ["agentps", "train", str(run), "--recipe", str(place / "recipe.toml"), "--out", str(out)]
    command += ["--set", "training.epochs=1", "--set", "model.max_tokens=200"]
    command += ["--set", "data.max_bad_share=1", "--set"]
    assert main([*command, "data.max_bad_rows=2"]) == 2
    assert f"{run}: 3 of {len(gone)} posts" in capsys.readouterr().err
    assert main([*command, "data.max_bad_rows=3"]) == 0
    told = capsys.readouterr().err
    assert f"3 posts left out, listed in {out / 'quarantine.jsonl'}" in told
    assert f"id {gone[0]!r}: in no manifest of the run any more" in told


def known_posts(run):
    found = load_posts(SourceSettings(run=run), 0)
    return [*found.train, *found.validation]


def test_test_posts_that_are_gone_are_said_before_anything_is_paid_for(
    run_with_questions, backend, tmp_path, capsys
):
    run, gone = tmp_path / "run", tmp_path / "gone.jsonl"
    shutil.copytree(run_with_questions, run)
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("[data]", f'[data]\ntest = "{gone}"'))
    checksums.note_written(recipe)
    command = ["agentps", "from-run", str(run), "--server", "http://127.0.0.1:9"]
    assert main([*command, "--out", str(tmp_path / "model")]) == 2
    assert f"{gone} cannot be read: No such file" in capsys.readouterr().err
    assert not backend.requests


def test_several_processes_would_ask_and_measure_several_times(
    run_with_questions, backend, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ["agentps", "from-run", str(run_with_questions), "--server", "http://127.0.0.1:9"]
    assert main([*command, "--out", str(tmp_path / "model")]) == 2
    assert "start it without accelerate" in capsys.readouterr().err
    assert not backend.requests


def test_a_variant_without_process_heads_asks_nobody(run_with_questions, backend, tmp_path):
    place, out = training_folder(tmp_path / "base"), tmp_path / "model"
    command = ["agentps", "from-run", str(run_with_questions), "--server", "http://127.0.0.1:9"]
    command += ["--recipe", str(place / "recipe.toml"), "--set", "training.epochs=1", "--out", str(out)]
    assert main([*command, "--set", "model.variant=vanilla"]) == 0
    assert not backend.requests
    assert (out / "test" / "metrics.json").exists()


def test_nothing_is_written_into_a_runs_folder(run_with_questions, backend, capsys):
    before = sorted(run_with_questions.rglob("*"))
    run = str(run_with_questions)
    for command in (["from-run", run, "--server", "http://127.0.0.1:9"], ["train", run]):
        assert main(["agentps", *command, "--out", run]) == 2
        assert "is the folder of a run, whose own files would be lost" in capsys.readouterr().err
    assert sorted(run_with_questions.rglob("*")) == before
    assert not backend.requests


def test_it_asks_about_videos_and_long_albums_as_they_are_trained_on(run_with_questions, backend, tmp_path):
    place, out = training_folder(tmp_path / "base", frames=2), tmp_path / "model"
    film(tmp_path / "clip.mp4")
    classes = load_posts(SourceSettings(run=run_with_questions), 0).task.names
    posts = [
        {"id": "v1", "text": "moving", "video": "clip.mp4", "label": classes[0]},
        {"id": "l1", "text": "long", "images": paint(tmp_path, "l", 20), "label": classes[1]},
    ]
    (tmp_path / "check.jsonl").write_text("".join(json.dumps(one) + "\n" for one in posts))
    command = [
        "agentps", "from-run", str(run_with_questions), "--server", "http://127.0.0.1:9", "--out", str(out),
        "--recipe", str(place / "recipe.toml"), "--set", "training.epochs=1", "--set", "model.max_tokens=200",
        "--set", f'data.validation="{tmp_path / "check.jsonl"}"',
    ]  # fmt: skip
    assert main(command) == 0
    shown = {request.affinity: len(pictures_of(request)) for request in backend.requests}
    assert (shown["v1"], shown["l1"]) == (16, 16)
    written = rows(out / "answers.jsonl")
    assert [written[one]["process"] for one in ("v1", "l1")] == [{"loud": "yes"}] * 2
    validated = (out / "validation.jsonl").read_text().splitlines()
    assert {json.loads(one)["id"] for one in validated} == {"v1", "l1"}

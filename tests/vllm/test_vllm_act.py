"""Annotating and criticizing with a real vLLM server: every strategy answers, and nothing is paid twice.

The model is far too small to find an error: what is tested is that its answers are read as what they are.
"""

from __future__ import annotations

import json

import pytest

from agents.ask.criticizer import STRATEGIES
from selftrain.cli import main

pytestmark = [pytest.mark.integration, pytest.mark.vllm]
POSTS = 8


@pytest.fixture
def manifest(tmp_path):
    from selftrain.data.drawn import draw_posts

    draw_posts(tmp_path, POSTS)
    return tmp_path / "manifest.jsonl"


def test_choose_tries_every_strategy_and_pays_once(manifest, small_vlm_server, capsys):
    out = manifest.with_name("choice.json")
    command = [
        "act", "select-models", str(manifest), "--task", str(manifest.with_name("task.toml")),
        "--server", small_vlm_server.endpoint, "--labelled", str(POSTS), "--pool", "1000",
        "--json", str(out),
    ]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    first = json.loads(out.read_text())

    # ---- both ways of annotating, six of criticizing, one model criticizing itself --------------------
    assert [one["posts"] for one in first["annotators"]] == [POSTS, POSTS]
    assert {one["mode"] for one in first["annotators"]} == {"plain", "reasoning"}
    labelled = [one for one in first["annotators"] if one["unlabelled"] < POSTS]
    assert labelled, "the server gave no post a label"
    assert all(one["tokens"] > 0 for one in first["annotators"])
    criticizers = {one["strategy"]: one for one in first["criticizers"]}
    assert set(criticizers) == set(STRATEGIES)
    for one in criticizers.values():
        assert one["missing"] < POSTS, f"{one['strategy']} estimated nothing"
        assert 0.0 <= one["mean_error"] <= 1.0
    # a share of probabilities, not an answer: it lies between none and all
    assert 0.0 < criticizers["log_probability"]["mean_error"] < 1.0
    low, middle, high = (first["budget"]["share"][key] for key in ("low", "value", "high"))
    assert 0.0 < low <= middle <= high <= 1.0
    assert first["budget"]["posts"][0] == pytest.approx(1000 * middle, abs=1)
    assert "annotate with" in said
    assert "a second one finds other errors" in said

    # ---- the same question again costs nothing and answers the same -----------------------------------
    assert main(command) == 0
    again = json.loads(out.read_text())
    for one in (*first["annotators"], *first["criticizers"], first["annotator"], first["criticizer"]):
        one["tokens"] = 0
    assert again == first


def test_an_address_without_a_model_of_that_name_is_told(manifest, small_vlm_server, capsys):
    task = str(manifest.with_name("task.toml"))
    server = f"{small_vlm_server.endpoint}#no-such-model"
    assert main(["act", "select-models", str(manifest), "--task", task, "--server", server]) == 2
    assert "no-such-model" in capsys.readouterr().err


def test_a_run_has_its_divergent_posts_criticized_by_a_real_server(tmp_path, small_vlm_server):
    from selftrain.data.drawn import draw_posts
    from selftrain.review.criticism import CRITICISMS
    from selftrain.review.ledger import ReviewLedger
    from selftrain.review.ledger_reader import LEDGER
    from selftrain.runs import start

    draw_posts(tmp_path / "data", 120)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[data]\nmanifest = "data/manifest.jsonl"\ntask = "data/task.toml"\nlabelled = 30\n'
        "train_share = 0.6\nvalidation_share = 0.2\ntest_share = 0.2\n"
        "[selection]\nk = 20\n[rounds]\nmax = 2\n[vlm]\nimage_side = 112\nattempts = 2\ntimeout = 300\n"
        f'[human]\nbudget = 3\nsource = "criticizer"\nstrategy = "log_probability"\n'
        f'servers = ["{small_vlm_server.endpoint}"]\n'
    )
    run = start(recipe, tmp_path / "run")
    assert [one.number for one in run.rounds()] == [0, 1]
    assert "wait for review" in run.stopped

    rows = [json.loads(line) for line in (tmp_path / "run" / CRITICISMS).read_text().splitlines()]
    assert rows
    assert all(row["source"].startswith("vlm:small-vlm@") for row in rows), rows[0]["source"]
    estimates = {row["post_id"]: row["error"] for row in rows if row["error"] is not None}
    assert all(0.0 < error < 1.0 for error in estimates.values())
    ledger = ReviewLedger(tmp_path / "run" / LEDGER)
    entries = {entry.post_id: entry.error for entry in ledger.population("round 1")}
    assert len(ledger.drawn("round 1")) == 3
    ledger.close()
    assert set(entries) == {row["post_id"] for row in rows}
    assert {post_id: entries[post_id] for post_id in estimates} == pytest.approx(estimates)


def test_a_pool_is_labelled_doubted_and_drawn_by_a_real_server(manifest, small_vlm_server, capsys):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows[2:]:
        del row["label"]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = manifest.with_name("labels")
    command = [
        "act", "annotate", str(manifest), "--task", str(manifest.with_name("task.toml")),
        "--annotator", small_vlm_server.endpoint, "--annotate", "plain", "--strategy", "log_probability",
        "--budget", "3", "--out", str(folder),
    ]  # fmt: skip
    assert main(command) == 0
    assert "3 posts drawn for review" in capsys.readouterr().out
    kept = (folder / "annotations.jsonl").read_bytes()
    assert main(command) == 0
    assert (folder / "annotations.jsonl").read_bytes() == kept
    capsys.readouterr()
    out = manifest.with_name("labelled.jsonl")
    assert main(["act", "export", str(folder), "--out", str(out)]) == 0
    assert "3 posts wait for a review" in capsys.readouterr().out
    labelled = [json.loads(line) for line in out.read_text().splitlines()]
    given = [row for row in labelled if "provenance" in row]
    assert len(labelled) == POSTS
    assert 3 <= len(given) <= POSTS - 2
    assert all(0.0 < row["provenance"]["error"] < 1.0 for row in given)

"""A pool of three classes labelled by a model, doubted by another, put right by people."""

from __future__ import annotations

import csv
import json

import pytest
from act_helpers import BRIEF, CLASSES, NAMES, Model

from agents.ask.annotator import AnnotationPrompts, Annotator
from agents.ask.cache import ResponseCache
from agents.ask.criticizer import Criticizer
from agents.ask.runner import Runner
from agents.client.base import Completion, Usage
from selftrain.cli import main
from selftrain.data.manifest import read_manifest
from selftrain.data.task import Task, TaskClass, dump_task, load_task
from selftrain.errors import BudgetError, RunMismatchError
from selftrain.review.labelling import (
    ANNOTATIONS,
    BATCH,
    LabelFolder,
    annotate_pool,
    begin,
    mixed_posts,
    read_posts,
    review_folder,
)
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER
from selftrain.review.page.review_server import next_command, open_session
from selftrain.review.sampling import SampleSettings

POSTS, KNOWN, SLIP, BUDGET = 40, 4, 5, 10


def truth_of(post_id):
    return NAMES[int(post_id[1:]) % 3]


@pytest.fixture
def data(tmp_path):
    """A manifest of which four posts have a label of a person already."""
    classes = tuple(TaskClass(name, meaning) for name, meaning in CLASSES.items())
    dump_task(Task("manners", classes, "rude", "Rude posts insult."), tmp_path / "task.toml")
    rows = [{"id": f"p{i}", "text": f"number {i} is {NAMES[i % 3]}", "place": i} for i in range(POSTS)]
    for row in rows[:KNOWN]:
        row["label"] = truth_of(row["id"])
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def labelled(data, annotator=None, critic=None, *, name="labels", **drawing):
    """`act annotate` with models in memory."""
    folder, task = LabelFolder(data / name), load_task(data / "task.toml")
    read = read_manifest(data / "posts.jsonl", task).posts
    posts = [post for post in read if post.label is None]
    chosen = SampleSettings(**{"budget": BUDGET, "rule": "threshold", "floor": 0.0} | drawing)
    store = ResponseCache(data / "answers.sqlite")
    models = [annotator or Model("good", SLIP), critic or Model("fair", 3)]
    runners = [Runner(model, store, run=name, opener=None) for model in models]
    try:
        with folder.locked():
            begin(folder, data / "posts.jsonl", data / "task.toml", chosen._asdict(), posts=read)
            return annotate_pool(
                folder, posts,
                annotating=(runners[0], Annotator(AnnotationPrompts(BRIEF), reasoning=False)),
                criticizing=(runners[1], Criticizer(AnnotationPrompts(BRIEF), "log_probability")),
                classes=NAMES, drawing=chosen,
            )  # fmt: skip
    finally:
        for runner in runners:
            runner.close()
        store.close()


def review(data):
    """Somebody who knows the truth looks at all that was drawn."""
    ledger, seen = ReviewLedger(data / "labels" / LEDGER), []
    while (post := ledger.next_post("ann")) is not None:
        ledger.decide("ann", post.item.post_id, truth_of(post.item.post_id))
        seen.append(post.item.post_id)
    ledger.close()
    return seen


WRONG = {f"p{i}" for i in range(KNOWN, POSTS) if i % SLIP == 0}


def test_people_see_the_labels_that_the_critic_doubts_and_the_mix_is_right(data):
    found = labelled(data)
    assert (found.posts, found.unlabelled, found.missing, found.drawn) == (POSTS - KNOWN, 0, 0, BUDGET)
    assert found.doubt == pytest.approx((0.9 * len(WRONG) + 0.1 * (36 - len(WRONG))) / 36)
    seen = review(data)
    assert len(seen) == BUDGET
    assert set(seen) >= WRONG  # seven, and three more by lot

    mixed = mixed_posts(LabelFolder(data / "labels"), load_task(data / "task.toml"))
    posts = mixed.posts
    assert (mixed.human, mixed.machine, mixed.waiting) == (BUDGET, POSTS - KNOWN - BUDGET, 0)
    assert mixed.errors is None  # drawn by threshold alone: nothing can be said of the others
    assert {post.id: post.label for post in posts} == {f"p{i}": NAMES[i % 3] for i in range(POSTS)}
    sources = {post.id: post.extra.get("provenance", {}).get("source") for post in posts}
    assert [one for one in sources if sources[one] is None] == ["p0", "p1", "p2", "p3"]
    assert {one for one in sources if sources[one] == "human"} == set(seen)
    assert all(post.extra["place"] == int(post.id[1:]) for post in posts)


def test_repeated_it_costs_nothing_and_draws_the_same(data):
    sampled = {"rule": "exponential", "floor": 0.2}
    first = labelled(data, **sampled)
    kept = {name: (data / "labels" / name).read_bytes() for name in (ANNOTATIONS, "criticisms.jsonl")}
    models = Model("good", SLIP), Model("fair", 3)
    assert labelled(data, *models, **sampled) == first
    assert not models[0].asked
    assert not models[1].asked
    assert kept == {name: (data / "labels" / name).read_bytes() for name in kept}
    with pytest.raises(RunMismatchError, match=r"labelling\.budget"):
        labelled(data, **sampled, budget=11)


def test_a_sample_with_a_floor_tells_how_wrong_the_machine_is(data, capsys):
    labelled(data, rule="normalised", floor=0.3, budget=30)
    command = ["act", "export", str(data / "labels"), "--out", str(data / "mixed.jsonl")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "30 posts wait for a review" in said
    assert "cannot be told" in said
    seen = review(data)
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"{len(seen)} labels from review, 6 of the machine" in said
    estimate = float(said.split("wrong machine labels: ")[1].split(" %")[0])
    assert estimate == pytest.approx(100 * len(WRONG) / 36, abs=12)
    assert "wrong labels left in the file: " in said
    again = read_manifest(data / "mixed.jsonl", load_task(data / "task.toml"))
    assert len(again.posts) == POSTS
    assert not again.problems


def test_the_review_page_and_the_exports_know_a_labelling_of_three_classes(data, capsys):
    labelled(data)
    folder = review_folder(data / "labels")
    assert isinstance(folder, LabelFolder)
    desk = open_session(folder)
    try:
        assert desk.ledger.classes == tuple(NAMES)
        drawn = desk.ledger.drawn(BATCH)
        parties = desk.material.opinions(drawn[0])
        assert [one["who"] for one in parties] == ["annotator", "criticizer"]
        assert parties[1]["steps"][0]["state"].endswith("likely wrong")
        assert desk.material.shown(drawn[0])["text"].startswith("number ")
    finally:
        desk.close()
    assert next_command(folder) == f"selftrain act export {data / 'labels'} --out labelled.jsonl"

    out = data / "waiting.csv"
    assert main(["review", "export", str(data / "labels"), "--to", "csv", "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.open(encoding="utf-8-sig")))
    assert len(rows) == BUDGET
    assert all(row["opinions"].startswith("annotator: ") for row in rows)
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"label": truth_of(row["post_id"]), "reviewer": "bob"} for row in rows)
    capsys.readouterr()
    assert main(["review", "import", str(data / "labels"), str(out)]) == 0
    assert f"{BUDGET} taken" in capsys.readouterr().out


class Unsure(Model):
    """Cannot tell what every `often`-th post is."""

    often = 1

    async def complete(self, request):
        asked = "".join(part for part in request.messages[-1].parts if isinstance(part, str))
        if int(asked.split("number ")[1].split()[0]) % self.often:
            return await super().complete(request)
        return Completion('{"label": "unsure"}', "stop", Usage(100, 0, 0, 10), ())


def test_posts_without_a_machine_label_are_told_and_stay_without_one(data):
    annotator = Unsure("shy", SLIP)
    annotator.often = 3
    found = labelled(data, annotator)
    assert (found.posts, found.unlabelled, found.reason) == (24, 12, "the annotator was unsure")
    posts = mixed_posts(LabelFolder(data / "labels"), load_task(data / "task.toml")).posts
    assert {post.id for post in posts if post.label is None} == {
        f"p{i}" for i in range(KNOWN, POSTS) if i % 3 == 0
    }


def test_a_model_that_labels_next_to_nothing_ends_it_before_people_are_asked(data):
    with pytest.raises(BudgetError, match=r"gave 0 of 36 posts a label; .* the annotator was unsure"):
        labelled(data, Unsure("blank", SLIP))
    assert not (data / "labels" / LEDGER).exists()


def test_what_cannot_be_doubted_or_drawn_is_told(data):
    with pytest.raises(BudgetError, match="no estimate for any of 36 labels"):
        labelled(data, critic=Model("mute", 3, tokens=False))
    assert not (data / "labels" / LEDGER).exists()
    with pytest.raises(BudgetError, match="a budget of 37 for 36 labels"):
        labelled(data, name="other", budget=37)


def test_a_manifest_without_a_pool_or_a_folder_without_labels_is_refused(data, capsys):
    (data / "all.jsonl").write_text('{"id": "a", "text": "x", "label": "rude"}\n')
    command = ["act", "annotate", str(data / "all.jsonl"), "--task", str(data / "task.toml"), "--budget", "1"]
    assert main([*command, "--annotator", "http://127.0.0.1:9", "--out", str(data / "x")]) == 2
    assert "no unlabelled post" in capsys.readouterr().err
    assert main(["act", "export", str(data / "nothing"), "--out", str(data / "y.jsonl")]) == 2
    assert "labelling.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[:-1], r"1 gone \('p39'\), since 2"),
        (lambda rows: [*rows, {"id": "q", "text": "new"}], r"1 new \('q'\)"),
        (lambda rows: [{**row, "text": row["text"] + "!"} for row in rows], "40 of another text"),
    ],
)
def test_labels_are_given_to_no_posts_but_those_that_were_labelled(data, capsys, change, told):
    labelled(data, rule="normalised", floor=0.3)
    file, kept = data / "posts.jsonl", (data / "posts.jsonl").read_text()
    rows = [json.loads(line) for line in kept.splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    with pytest.raises(RunMismatchError, match=told):
        mixed_posts(LabelFolder(data / "labels"), load_task(data / "task.toml"))
    with pytest.raises(RunMismatchError, match=told):
        labelled(data, rule="normalised", floor=0.3)
    review(data)
    assert main(["act", "train", str(data / "labels"), "--out", str(data / "model")]) == 2
    assert "are not those that were labelled" in capsys.readouterr().err
    # in another order, and with labels of people, they are the same
    rows[-1]["label"] = NAMES[0]
    file.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    found = mixed_posts(LabelFolder(data / "labels"), load_task(data / "task.toml"))
    assert [(post.id, post.label) for post in found.posts][:1] == [("p39", NAMES[0])]


def test_rows_that_are_set_aside_are_told(data, caplog):
    with (data / "posts.jsonl").open("a") as file:
        file.write('{"id": "bad", "text": "x", "label": "none of them"}\n')
    labelled(data, rule="normalised", floor=0.3)
    read_posts(data / "posts.jsonl", load_task(data / "task.toml"))
    assert "1 rows are set aside, line 41, id 'bad': label 'none of them' is none of" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget", "37"], "a budget of 37 for 36 unlabelled posts"),
        (["--budget", "0"], "'--budget'"),
        (["--budget", "9", "--floor", "1.5"], "'--floor'"),
        (["--budget", "9", "--double-annotation-rate", "-1"], "'--double-annotation-rate'"),
    ],
)
def test_a_draw_that_cannot_be_is_refused_before_anything_is_paid_for(options, said, data, capsys):
    files = [str(data / "posts.jsonl"), "--task", str(data / "task.toml"), "--out", str(data / "labels")]
    assert main(["act", "annotate", *files, "--annotator", "http://127.0.0.1:9", *options]) == 2
    assert said in capsys.readouterr().err
    assert not (data / "labels").exists()

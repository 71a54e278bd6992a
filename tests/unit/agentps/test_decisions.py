"""How answers are calibrated and decided: set on validation posts, the same wherever the model is used."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from agentps_helpers import TASK, training_folder
from serving_helpers import Served

from selftrain.agentps import predict
from selftrain.agentps.checkpoint import load
from selftrain.agentps.dataset import example, question_set
from selftrain.agentps.decisions import QuestionDecision, decided, fit_decisions, full_report
from selftrain.agentps.evaluate import ScoredPost, question_scores
from selftrain.agentps.train import train_agentps
from selftrain.cli import main
from selftrain.data.posts import Post
from selftrain.errors import RecipeError
from selftrain.models.calibration import probabilities
from selftrain.report.model_page import gather, write_report
from selftrain.serving import row_stream, streams
from selftrain.serving.load_predictor import load_predictor
from selftrain.serving.wire import RequestLimits
from selftrain.store import checksums

ASKED = question_set(TASK, "multitask")


def drawn_scores(posts, seed=0, sharpness=1.0):
    """Scored posts whose answers are drawn from the probabilities; a model says them `sharpness` times."""
    generator = np.random.default_rng(seed)
    scored = []
    for i in range(posts):
        answers, given = [], {}
        for question in ASKED.all:
            logits = generator.normal(size=(1, len(question.answers))) * 1.5
            truth = generator.choice(question.answers, p=probabilities(logits)[0])
            given[question.name] = str(truth)
            answers.append(probabilities(sharpness * logits)[0].astype(np.float32))
        post = Post(f"p{i}", "day", (), given.pop("final"), given)
        scored.append(ScoredPost(example(post, ASKED), tuple(answers)))
    return scored


# ---- calibration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [0.4, 3.0])
def test_a_temperature_is_found_for_every_head_and_new_posts_are_said_as_often_as_they_are_so(sharpness):
    decisions = fit_decisions(question_scores(ASKED, drawn_scores(1500, sharpness=sharpness)), {})
    assert [one.slope for one in decisions] == pytest.approx([1 / sharpness] * 3, rel=0.15)
    new = [decided(decisions, one) for one in drawn_scores(1500, seed=1, sharpness=sharpness)]
    report = full_report(ASKED, new, decisions)
    for question in ASKED.all:
        found = report[question.name]["calibration"]
        assert found["calibrated"]["ece"] < 0.04 < found["raw"]["ece"]
        assert sum(one["posts"] for one in found["raw"]["bins"]) == 1500 * (
            3 if question.name == "tone" else 1
        )


def test_what_was_calibrated_can_be_taken_back_and_changes_no_order():
    made, probs = QuestionDecision(slope=0.3), np.random.default_rng(0).dirichlet([0.2] * 4, 50)
    found = made.calibrate(probs)
    assert found.sum(1) == pytest.approx(np.ones(50))
    assert made.uncalibrated(found) == pytest.approx(probs, abs=1e-9)
    assert (found.argmax(1) == probs.argmax(1)).all()
    assert np.isfinite(made.calibrate(np.array([[1.0, 0.0]], np.float32))).all()


# ---- rules ----------------------------------------------------------------------------------------------


def test_from_its_threshold_on_the_answer_looked_for_is_given_else_the_likeliest_other():
    made = QuestionDecision(looked_for=1, threshold=0.3)
    probs = np.array([[0.6, 0.3, 0.1], [0.1, 0.29, 0.61], [0.5, 0.29, 0.21], [0.0, 1.0, 0.0]])
    assert made.choose(probs).tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize("looked_for", [0, 1])
def test_the_cut_of_two_answers_is_a_threshold_and_decides_alike(looked_for):
    from selftrain.models.calibration import fit_cut

    found = question_scores(ASKED, drawn_scores(200))[0]
    rare = found.probs * np.array([0.2, 1.0])
    found = found._replace(probs=(rare / rare.sum(1, keepdims=True)).round(6), looked_for=looked_for)
    [made] = fit_decisions([found], {"insult": "macro_f1"})
    assert made.cut is None
    calibrated = made.calibrate(found.probs)
    cut = np.array(fit_cut(np.log(calibrated.round(6)).astype(np.float32)))
    assert cut[1] != 0
    expected = (np.log(calibrated) + cut).argmax(1)
    clear = np.abs(np.diff(np.log(calibrated) + cut, axis=1)[:, 0]) > 1e-4
    assert made.choose(calibrated)[clear].tolist() == expected[clear].tolist()


def test_rules_reach_on_validation_what_they_were_asked_for_in_every_question():
    scored = drawn_scores(300, sharpness=2.0)
    rules = {"insult": "recall 0.9", "tone": "precision 0.7", "final": "f1"}
    decisions = fit_decisions(question_scores(ASKED, scored), rules)
    assert [one.goal for one in decisions] == list(rules.values())
    report = full_report(ASKED, [decided(decisions, one) for one in scored], decisions)
    assert report["insult"]["decision"]["figures"]["recall"]["value"] >= 0.9
    assert report["tone"]["decision"]["figures"]["precision"]["value"] >= 0.7
    plain = fit_decisions(question_scores(ASKED, scored), {})
    likeliest = full_report(ASKED, [decided(plain, one) for one in scored], plain)
    assert report["final"]["decision"]["f1"] > likeliest["final"]["decision"]["f1"]
    moved = fit_decisions(question_scores(ASKED, scored), {"tone": "macro_f1"})[1]
    assert len(moved.cut) == 3
    assert moved.threshold is None


def test_a_precision_that_is_nowhere_is_said_and_the_likeliest_answer_given():
    scored = drawn_scores(60)
    upside_down = [
        one._replace(answers=tuple(answers[::-1].copy() for answers in one.answers)) for one in scored
    ]
    made = fit_decisions(question_scores(ASKED, upside_down), {"final": "precision 0.99"})[-1]
    assert made.threshold is None
    assert "no threshold reaches the precision 0.99 on the 60 validation posts: the best is" in made.note
    probs = np.array([[0.51, 0.49], [0.2, 0.8]])
    assert made.choose(probs).tolist() == [0, 1]


def test_a_question_that_no_validation_post_answers_has_no_threshold():
    scored = [
        one._replace(
            example=one.example._replace(targets=(np.zeros(2, np.float32), *one.example.targets[1:]))
        )
        for one in drawn_scores(30)
    ]
    for rule, words in (("f1", "none of the 0 validation posts"), ("macro_f1", "no validation post answers")):
        made = fit_decisions(question_scores(ASKED, scored), {"insult": rule})[0]
        assert (made.slope, made.threshold, made.cut) == (1.0, None, None)
        assert words in made.note


def test_a_rule_for_a_question_that_is_not_asked_is_refused():
    with pytest.raises(RecipeError, match=r"a rule is given for \['tune'\]; expected some of \['insult'"):
        fit_decisions(question_scores(ASKED, drawn_scores(9)), {"tune": "f1"})


# ---- with the model, wherever it is used ----------------------------------------------------------------


RULES = {"final": "recall 0.95", "insult": "f1", "tone": "macro_f1"}


def trained(place, rules, *more):
    changes = [f'data.task="{place / "task.toml"}"', "training.epochs=1", "data.validation_share=0.4", *more]
    changes += [f"decisions.{question}={rule}" for question, rule in rules.items()]
    manifest, recipe = place / "posts.jsonl", place / "recipe.toml"
    return train_agentps(manifest, place / "model", recipe=recipe, overrides=changes, bar=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = training_folder(tmp_path_factory.mktemp("decisions"))
    trained(place, RULES)
    return place


def records(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_thresholds_are_those_of_a_search_over_the_validation_file(place):
    rows = records(place / "model" / "validation.jsonl")
    truth = np.array([row["truth"]["final"] == "rude" for row in rows])
    probs = np.array([row["probabilities"]["rude"] for row in rows])
    reached = {t: (truth & (probs >= t)).sum() / truth.sum() for t in probs}
    best = max((truth & (probs >= t)).sum() / (probs >= t).sum() for t in probs if reached[t] >= 0.95)
    threshold = load(place / "model").decisions[-1].threshold
    passed = probs >= threshold
    assert (truth & passed).sum() / truth.sum() >= 0.95
    assert (truth & passed).sum() / passed.sum() == pytest.approx(best)
    assert [row["label"] for row in rows] == ["rude" if one else "kind" for one in passed]


def test_every_command_calibrates_and_decides_alike(place, tmp_path, capsys):
    model, manifest = str(place / "model"), str(place / "posts.jsonl")
    found = {}
    for name in ("predict", "agentps predict"):
        out = tmp_path / f"{name}.jsonl"
        assert main([*name.split(), model, manifest, "--out", str(out)]) == 0
        found[name] = records(out)
    assert found["predict"] == found["agentps predict"]
    predictor = load_predictor(model)
    assert predictor.calibrated
    given = [Post(row["id"], row["text"]) for row in records(place / "posts.jsonl")]
    by_python = [
        {"id": post.id} | one.to_json() for post, one in zip(given, predictor.predict(given), strict=True)
    ]
    assert by_python == found["predict"]
    decisions = load(place / "model").decisions
    for row in found["predict"]:
        assert row["label"] == ("rude" if row["probabilities"]["rude"] >= decisions[-1].threshold else "kind")
        assert set(row["answers"]) == {"insult", "tone"}

    served = Served(tmp_path, predictor, RequestLimits(), "", load=True)
    asked = [{"id": post.id, "text": post.text} for post in given[:6]]
    told = served.client.post("/score", json={"posts": asked}).json()
    served.batcher.close()
    served.scratch.close()
    assert told["scores"] == found["predict"][:6]

    sink = tmp_path / "sink.jsonl"
    capsys.readouterr()
    assert main(["filter", model, "--source", manifest, "--sink", str(sink)]) == 0
    told = capsys.readouterr().out
    assert f"posts pass from probability {predictor.threshold:.6f} of 'rude' on" in told
    expected = [row for row in found["predict"] if row["label"] == "rude"]
    for row, one in zip(records(sink), expected, strict=True):
        assert row["id"] == one["id"]
        assert row["selftrain"]["probabilities"] == pytest.approx(one["probabilities"], abs=2e-6)
        assert row["selftrain"]["answers"] == one["answers"]


def test_other_rules_are_set_without_training_again(place, tmp_path):
    shutil.copytree(place, tmp_path / "copy")
    copy = tmp_path / "copy"
    before = load(copy / "model")
    losses, weights = ((copy / "model" / name).read_bytes() for name in ("losses.jsonl", "model.safetensors"))
    after = trained(copy, {"final": "precision 0.5"})
    assert [one.goal for one in after.decisions] == ["likeliest", "likeliest", "precision 0.5"]
    assert [one.slope for one in after.decisions] == [one.slope for one in before.decisions]
    assert after.fingerprint != before.fingerprint
    assert (copy / "model" / "losses.jsonl").read_bytes() == losses
    assert (copy / "model" / "model.safetensors").read_bytes() == weights
    assert 'final = "precision 0.5"' in (copy / "model" / "training.toml").read_text()
    again = trained(copy, RULES)
    assert again.decisions == before.decisions
    for name in ("validation.jsonl", "metrics.json", "agentps.json"):
        assert (copy / "model" / name).read_bytes() == (place / "model" / name).read_bytes()


def test_rules_that_were_being_set_when_it_was_killed_are_set_back(place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path / "copy")
    model = tmp_path / "copy" / "model"
    write = checksums.write_json

    def killed(file, *args):
        if file.name == "agentps.json":
            raise KeyboardInterrupt
        write(file, *args)

    monkeypatch.setattr(checksums, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "copy", {"final": "precision 0.5"})
    monkeypatch.undo()
    assert (model / "metrics.json").read_bytes() != (place / "model" / "metrics.json").read_bytes()
    trained(tmp_path / "copy", RULES)
    for name in ("validation.jsonl", "metrics.json", "agentps.json"):
        assert (model / name).read_bytes() == (place / "model" / name).read_bytes()


def test_other_rules_leave_what_is_said_of_a_post(place, tmp_path):
    """Of an album more pictures are counted than named."""
    shutil.copytree(place, tmp_path / "copy")
    file = tmp_path / "copy" / "model" / "validation.jsonl"
    rows = records(file)
    rows[0] |= {"pictures": ["a.png", "b.png"], "picture_count": 40, "text": "cut"}
    rows[1] = {name: rows[1][name] for name in ("id", "text", "pictures", "picture_count", "truth")}
    rows[1]["reason"] = "too large"
    checksums.write_jsonl(file, rows)
    trained(tmp_path / "copy", {"final": "precision 0.5"})
    now = records(file)
    decided_by = ("label", "probability", "answers")
    assert [{k: v for k, v in row.items() if k not in decided_by} for row in now] == [
        {k: v for k, v in row.items() if k not in decided_by} for row in rows
    ]
    assert [row.get("label") for row in now] != [row.get("label") for row in rows]


def test_evaluate_sets_a_rule_on_the_models_own_validation_posts_and_keeps_it(place, tmp_path, capsys):
    shutil.copytree(place / "model", tmp_path / "model")
    model, manifest = str(tmp_path / "model"), str(place / "posts.jsonl")
    args = ["agentps", "evaluate", model, manifest, "--out", str(tmp_path / "figures")]
    assert main([*args, "--decide", "final=precision .999", "--decide", "insult=recall 1"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    kept = load(tmp_path / "model").decisions
    assert [one.goal for one in kept] == ["recall 1", "macro_f1", "precision 0.999"]
    insult = kept[0]
    rows = records(tmp_path / "figures" / "validation.jsonl")
    assert len(rows) == 60
    assert all(
        (row["answers"]["insult"] == "yes") == (row["process"]["insult"]["yes"] >= insult.threshold)
        for row in rows
    )
    if kept[-1].note:
        assert "final: no threshold reaches the precision 0.999" in told
    assert main([*args, "--decide", "final"]) == 2
    assert main([*args, "--decide", "tune=f1"]) == 2
    assert "expected some of ['insult', 'tone', 'final']" in capsys.readouterr().err


def test_a_models_own_folder_is_not_measured_into(place, tmp_path, capsys):
    shutil.copytree(place / "model", tmp_path / "model")
    model = str(tmp_path / "model")
    assert main(["agentps", "evaluate", model, str(place / "posts.jsonl"), "--out", model]) == 2
    assert "is the folder of a model, whose own files would be lost" in capsys.readouterr().err
    for name in ("validation.jsonl", "metrics.json"):
        assert (tmp_path / "model" / name).read_bytes() == (place / "model" / name).read_bytes()


def test_posts_of_which_nothing_is_known_are_no_measure(place, tmp_path, capsys):
    shutil.copytree(place / "model", tmp_path / "model")
    rows = records(place / "posts.jsonl")
    bare = [{"id": row["id"], "text": row["text"]} for row in rows[:3]]
    posts = tmp_path / "posts.jsonl"
    command = ["agentps", "evaluate", str(tmp_path / "model"), str(posts), "--out", str(tmp_path / "figures")]
    checksums.write_jsonl(posts, bare)
    assert main([*command, "--decide", "final=recall .7"]) == 2
    assert "none of 3 posts of" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()
    # the rule was not set either
    about = [folder / "model" / "agentps.json" for folder in (tmp_path, place)]
    assert about[0].read_bytes() == about[1].read_bytes()
    checksums.write_jsonl(posts, [bare[0] | {"label": rows[0]["label"]}, *bare[1:]])
    assert main(command) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "insult: nobody's answer is known among these posts" in told
    assert "final: only one answer occurs among these posts" in told


@pytest.mark.parametrize("name", ["task.toml", "validation.jsonl"])
def test_peoples_files_are_not_written_over(place, tmp_path, capsys, name):
    posts, mine = str(place / "posts.jsonl"), tmp_path / name
    mine.write_text("of somebody")
    train = ["train", posts, "--task", str(place / "task.toml"), "--recipe", str(place / "recipe.toml")]
    for command in (["evaluate", str(place / "model"), posts], train):
        assert main(["agentps", *command, "--out", str(tmp_path)]) == 2
        assert f"holds ['{name}'], which this did not write" in capsys.readouterr().err
    assert mine.read_text() == "of somebody"


def test_a_manifest_in_a_models_place_is_said(place, tmp_path, capsys):
    model, posts = str(place / "model"), str(place / "posts.jsonl")
    assert main(["agentps", "predict", posts, model, "--out", str(tmp_path / "scored.jsonl")]) == 2
    assert f"{posts} is a file; expected the folder of a model" in capsys.readouterr().err


def test_the_page_shows_rules_and_calibration(place):
    write_report(place / "model", place / "model" / "report.html")
    html = (place / "model" / "report.html").read_text()
    page = gather(place / "model")
    for one in page.questions:
        assert one.measured.decision.goal == RULES[one.name]
        assert f"<td>{RULES[one.name]}" in html
        assert f"{one.measured.calibration.raw.ece:.3f} before" in html
    assert html.count("expected calibration error") == 3
    assert "nan" not in html.partition("<script")[0]


def test_an_unreachable_rule_is_said_whenever_the_model_is_opened(place, tmp_path, caplog):
    shutil.copytree(place / "model", tmp_path / "model")
    about = json.loads((tmp_path / "model" / "agentps.json").read_text())
    about["decisions"]["final"] |= {
        "threshold": None,
        "note": "no threshold reaches it",
        "goal": "precision 0.9",
    }
    checksums.write_json(tmp_path / "model" / "agentps.json", about)
    assert load_predictor(tmp_path / "model").threshold is None
    assert "question 'final': no threshold reaches it; the likeliest answer is given" in caplog.text


def test_filter_without_a_threshold_says_what_to_give(place, tmp_path, capsys):
    shutil.copytree(place / "model", tmp_path / "model")
    about = json.loads((tmp_path / "model" / "agentps.json").read_text())
    about["decisions"]["final"] |= {"threshold": None, "goal": "likeliest"}
    checksums.write_json(tmp_path / "model" / "agentps.json", about)
    words = ["filter", str(tmp_path / "model"), "--source", str(place / "posts.jsonl"), "--sink"]
    assert main([*words, str(tmp_path / "sink.jsonl")]) == 2
    assert "no threshold was set with model: give --precision or --recall" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "sink.jsonl"), "--precision", ".5", "--recall", ".5"]) == 2
    assert not list(tmp_path.glob("sink*"))
    assert main([*words, str(tmp_path / "sink.jsonl"), "--recall", "1"]) == 0
    assert "recall 1.000" in capsys.readouterr().out


# ---- going on -------------------------------------------------------------------------------------------


class CutOffError(Exception):
    """A measurement that is cut off."""


def test_an_evaluation_that_was_cut_off_scores_no_post_twice(place, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 16)
    monkeypatch.setattr(
        row_stream.pour, "__kwdefaults__", row_stream.pour.__kwdefaults__ | {"commit_seconds": 0}
    )
    scored, whole = [], predict.predict

    def counted(loaded, posts, **options):
        if len(scored) == 32:
            scored.append("cut")
            raise CutOffError
        scored.extend(post.id for post in posts)
        return whole(loaded, posts, **options)

    args = ["agentps", "evaluate", str(place / "model"), str(place / "posts.jsonl"), "--out"]
    assert main([*args, str(tmp_path / "at-once")]) == 0
    monkeypatch.setattr(predict, "predict", counted)
    with pytest.raises(CutOffError):
        main([*args, str(tmp_path / "in-two")])
    assert not (tmp_path / "in-two" / "metrics.json").exists()
    assert main([*args, str(tmp_path / "in-two")]) == 0
    assert [one for one in scored if one != "cut"] == [row["id"] for row in records(place / "posts.jsonl")]
    for name in ("validation.jsonl", "metrics.json", "report.html"):
        found = (tmp_path / "in-two" / name).read_text().replace("in-two", "at-once")
        assert found == (tmp_path / "at-once" / name).read_text(), name
    assert not list((tmp_path / "in-two").glob("*.part"))


def test_bad_rows_beyond_the_limit_throw_no_output_away(place, tmp_path, capsys):
    source, out = tmp_path / "new.jsonl", tmp_path / "scored.jsonl"
    rows = [f'{{"id": "p{n}", "text": "awful day {n}"}}' if n % 5 else "{}" for n in range(600)]
    source.write_text("\n".join(rows) + "\n")
    args = ["agentps", "predict", str(place / "model"), str(source), "--out", str(out)]
    assert main(args) == 2
    told = capsys.readouterr().err
    assert "103 of 512 posts (20.12%) are set aside, at most 100 rows and 5.00% tolerated" in told
    assert not out.exists()
    assert main([*args, "--max-bad-rows", "200", "--max-bad-share", ".2"]) == 0
    assert "120 posts left out, listed in" in capsys.readouterr().err
    assert [row["id"] for row in records(out)] == [f"p{n}" for n in range(600) if n % 5]

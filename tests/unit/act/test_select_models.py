"""Who annotates, who criticizes and what budget: the rule, its figures, and the command."""

from __future__ import annotations

import json
import math
from typing import get_args

import numpy as np
import pytest
from act_helpers import BRIEF, NAMES, Model
from sklearn.metrics import roc_auc_score

from agents.ask.annotator import AnnotationPrompts
from agents.ask.cache import ResponseCache
from agents.ask.criticizer import STRATEGIES, Criticism
from agents.ask.runner import Runner
from agents.trust import wilson
from selftrain._util.choices import StrategyName
from selftrain.act.select_models import ModelSelection, advise, auc_interval, criticizer_score, select_models
from selftrain.cli import main
from selftrain.data.posts import Post
from selftrain.errors import BudgetError

POSTS = [Post(f"p{i}", f"number {i} is {NAMES[i % 3]}", label=NAMES[i % 3]) for i in range(60)]


def chosen(tmp_path, *models, posts=POSTS, **options) -> ModelSelection:
    store = ResponseCache(tmp_path / "a.sqlite")
    runners = {m.name: Runner(m, store, run="r", opener=None) for m in models}
    try:
        return select_models(
            runners,
            posts,
            AnnotationPrompts(BRIEF),
            **{"strategies": ("log_probability",), "modes": ("plain",)} | options,
        )
    finally:
        for runner in runners.values():
            runner.close()
        store.close()


GOOD, FAIR, POOR = ("good", 10), ("fair", 5), ("poor", 2)


def test_the_best_annotates_and_the_second_best_criticizes(tmp_path):
    models = [Model(*POOR), Model(*GOOD), Model(*FAIR)]
    choice = chosen(tmp_path, *models)
    assert (choice.annotator.model, choice.criticizer.model) == ("good", "fair")
    assert [one.model for one in choice.annotators] == ["good", "fair", "poor"]
    assert choice.annotator.accuracy == wilson(54, 60)
    assert choice.criticizer.auc.value == 1.0
    assert choice.criticizer.mean_error == pytest.approx(0.1 * 0.9 + 0.9 * 0.1)
    assert [len(model.asked) for model in models] == [60, 60, 120]  # only the chosen critic is asked
    assert all(model.closed == 1 for model in models)


def test_equals_stand_in_the_order_given(tmp_path):
    choice = chosen(tmp_path, Model("b", 10), Model("a", 10))
    assert (choice.annotator.model, choice.criticizer.model) == ("b", "a")


def test_one_model_criticizes_itself_and_is_told_so(tmp_path):
    choice = chosen(tmp_path, Model(*GOOD))
    assert (choice.annotator.model, choice.criticizer.model) == ("good", "good")
    assert any("criticizes itself" in warning for warning in choice.warnings)


def test_self_criticism_is_tried_beside_but_the_rule_stands(tmp_path):
    choice = chosen(tmp_path, Model("good", 10, sure=0.99), Model("fair", 5, sure=0.4), self_criticism=True)
    assert [one.model for one in choice.criticizers] == ["fair", "good"]
    assert choice.criticizer.model == "fair"
    assert choice.criticizer.auc.value == 0.0
    assert any("no better than chance" in warning for warning in choice.warnings)


def test_the_better_way_of_asking_is_chosen_and_what_is_missing_is_counted(tmp_path):
    models = [Model(*GOOD), Model("fair", 5, tokens=False)]
    choice = chosen(
        tmp_path, *models, strategies=("perplexity", "log_probability"), modes=("plain", "reasoning")
    )
    assert {(one.model, one.mode) for one in choice.annotators} == {
        (name, mode) for name in ("good", "fair") for mode in ("plain", "reasoning")
    }
    # without log-probabilities neither strategy has an estimate: every post counts alike
    assert [one.missing for one in choice.criticizers] == [60, 60]
    assert choice.criticizer.auc.value == 0.5


def test_the_budget_is_the_error_share_and_the_buffer(tmp_path):
    budget = chosen(tmp_path, Model(*GOOD), Model(*FAIR), pool=1000).budget
    error = wilson(6, 60)
    assert budget.error == error
    assert budget.share == pytest.approx([value + 0.1 for value in error])
    assert budget.posts == tuple(math.ceil(round(1000 * (value + 0.1), 6)) for value in error)
    assert budget.posts[0] == 200
    assert advise(18, 100, pool=None).posts is None
    assert advise(95, 100, buffer=0.1, pool=50).posts[0] == 50  # never more than all


def test_a_choice_is_json(tmp_path):
    record = json.loads(json.dumps(chosen(tmp_path, Model(*GOOD), Model(*FAIR), pool=10).to_json()))
    assert record["annotator"]["accuracy"]["value"] == 0.9
    assert record["criticizer"]["strategy"] == "log_probability"
    assert record["budget"]["posts"][0] == 2


@pytest.mark.parametrize(
    "options",
    [
        {"strategies": ()}, {"modes": ()}, {"buffer": 1.5}, {"buffer": -0.1}, {"posts": POSTS[:1]},
        {"posts": [*POSTS, Post("x", "number 1 is rude")]},
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_from_is_refused(tmp_path, options):
    with pytest.raises(BudgetError):
        chosen(tmp_path, Model(*GOOD), **options)
    with pytest.raises(BudgetError):
        chosen(tmp_path)


def test_auc_and_its_interval():
    rng = np.random.default_rng(0)
    wrong = rng.random(200) < 0.3
    errors = np.clip(np.round(0.3 + 0.2 * wrong + 0.2 * rng.standard_normal(200), 1), 0, 1)
    found = auc_interval(wrong, errors)
    assert found.value == pytest.approx(roc_auc_score(wrong, errors))
    assert found.low < found.value < found.high
    assert 0.05 < found.high - found.low < 0.25
    assert auc_interval(np.zeros(5, dtype=bool), errors[:5]) is None


def test_posts_without_a_label_do_not_count_for_the_criticizer():
    said = [
        Criticism("a", "plain", 0.9, "", "", "s"), Criticism("b", "plain", 0.1, "", "", "s"),
        Criticism("c", "plain", None, "not annotated: unsure", "", "s"),
        Criticism("d", "plain", None, "refused", "", "s"),
    ]  # fmt: skip
    score = criticizer_score("m", "plain", said, np.array([True, False, True, False]), 5)
    assert score.missing == 1
    assert score.mean_error == pytest.approx(0.5)
    assert score.auc.value == 1.0


# ---------------------------------------------------------------- the command


@pytest.fixture
def files(tmp_path, monkeypatch):
    rows = [{"id": p.id, "text": p.text, "label": p.label} for p in POSTS]
    rows += [{"id": f"u{i}", "text": "unlabelled"} for i in range(500)]
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.toml").write_text(
        'name = "manners"\npositive = "rude"\npolicy = "Rude posts insult."\n'
        '[classes]\nrude = "insults"\nkind = "friendly"\nodd = "else"\n'
    )
    models = {"http://a": Model(*GOOD), "http://b": Model("\x1b[31mfair", 5)}
    monkeypatch.setattr("selftrain.panels.build_backend", lambda model: models[model.servers[0]])
    command = ["act", "select-models", str(tmp_path / "posts.jsonl"), "--task", str(tmp_path / "task.toml")]
    return [*command, "--server", "http://a", "--server", "http://b#fair"], models


def test_the_command_prints_what_to_do(files, tmp_path, capsys):
    command, models = files
    assert main([*command, "--strategy", "log_probability", "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "annotate with good (plain)" in printed
    assert "criticize with \\x1b[31mfair (log_probability)" in printed
    assert "budget 20.0 % [" in printed
    assert ": 100 posts [" in printed
    assert "\x1b[31m" not in printed
    assert json.loads((tmp_path / "out.json").read_text())["budget"]["posts"][0] == 100
    assert (tmp_path / "responses.sqlite").exists()
    calls = sum(len(model.asked) for model in models.values())
    assert main([*command, "--strategy", "log_probability"]) == 0
    assert sum(len(model.asked) for model in models.values()) == calls  # paid for once


@pytest.mark.parametrize("name", ["posts.jsonl", "task.toml"])
def test_what_is_read_is_not_written_over(files, tmp_path, capsys, name):
    command, models = files
    before = (tmp_path / name).read_bytes()
    assert main([*command, "--json", str(tmp_path / name)]) == 2
    assert "is a file that is read, and would be lost" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == before
    assert not any(model.asked for model in models.values())


def test_the_command_draws_posts_and_writes_json_to_standard_output(files, capsys):
    command, models = files
    options = [
        "--strategy",
        "plain",
        "--annotate",
        "plain",
        "--labelled",
        "20",
        "--pool",
        "50",
        "--json",
        "-",
    ]
    models["http://b"].slip = 3
    assert main([*command, *options]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["annotators"][0]["posts"] == 20
    assert record["criticizer"]["missing"] == 20  # it says yes where a percentage was asked for


def test_the_strategies_that_are_offered_are_those_there_are():
    assert get_args(StrategyName) == tuple(STRATEGIES)


def test_the_command_refuses_too_few_labelled_posts(files, capsys):
    command, _ = files
    assert main([*command, "--labelled", "1"]) == 2
    assert "at least two" in capsys.readouterr().err


def test_the_token_cap_ends_the_command(files, capsys):
    command, _ = files
    assert main([*command, "--token-cap", "1000"]) == 2
    assert "tokens" in capsys.readouterr().err

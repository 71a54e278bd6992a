"""The study of real judgments on a tiny set: every method, the file of figures, and what is made of it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from runs.bench import __main__ as bench
from runs.bench.judges import BROKEN, METHODS, WITH_AGENTS, broken, draw, find_sets, numbers, tables
from runs.bench.paired import bootstrap, halves_table, over_posts, points_over, t_interval, t_over_seeds
from runs.bench.peers import MISSING, crowdlab, dawid_skene, majority
from runs.bench.study import Figures
from selftrain.errors import DataError
from selftrain.models.metrics import threshold_intervals

FRUIT, METAL = ("apple", "pear", "plum", "cherry", "quince"), ("iron", "copper", "zinc", "tin", "lead")
POSTS = 90


def write_set(folder: Path, *, right: float = 0.85, agents=("first", "second"), seed=0) -> Path:
    """A set whose posts name fruit or metal, one in six by the wrong label, with answers right so often."""
    random = np.random.RandomState(seed)
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text(
        'name = "things"\npositive = "fruit"\npolicy = "Fruit or metal."\n'
        '[classes]\nfruit = "grows"\nmetal = "shines"\n'
    )
    posts = []
    for number in range(POSTS):
        label = ("fruit", "metal")[number % 2]
        words = (FRUIT, METAL)[(number + (number % 6 == 0)) % 2]
        text = f"number {number}: {words[number % 5]} and {words[(number // 3) % 5]}"
        posts.append({"id": f"p{number}", "text": text, "label": label})
    write_lines(folder / "manifest.jsonl", posts)
    other = {"fruit": "metal", "metal": "fruit"}
    for name in agents:
        told = [
            {"id": post["id"], "label": label if random.rand() < right else other[label]}
            for post in posts
            for label in [post["label"]]
        ]
        told[0]["label"] = None
        write_lines(folder / f"{name}.jsonl", told)
    return folder


def write_lines(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_whole_study_runs_goes_on_and_is_told_in_tables(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path / "cache"))
    write_set(tmp_path / "sets" / "one")
    write_set(tmp_path / "sets" / "two", seed=1)
    (tmp_path / "sets" / "none").mkdir()
    words = [
        "judges", "--data", str(tmp_path / "sets"), "--n", "16", "--seeds", "0..0", "--asked", "12",
        "--json", str(tmp_path / "judges.jsonl"),
    ]  # fmt: skip
    assert bench.main([*words, "--sets", "one"]) == 0
    told, before = capsys.readouterr().out, (tmp_path / "judges.jsonl").read_text()
    figures = Figures(tmp_path / "judges.jsonl")
    for method in METHODS:
        budget = "12" if method in WITH_AGENTS else ""
        for metric in ("macro_f1", "auc", "seconds"):
            assert set(figures.values(method, 16, metric, dataset="one", asked=budget)) == {0}
        if budget:
            assert max(figures.values(method, 16, "asked", dataset="one", asked=budget).values()) <= 12
        assert f"\n{method} " in told
    # two agents on 12 posts at most, and on the labelled ones where their tables are learned
    assert set(figures.values("majority_hard", 16, "calls", dataset="one", asked="12").values()) <= {
        23.0,
        24.0,
    }
    assert all(
        0 <= value <= 1 for value in figures.values("crowdlab", 16, "ece", dataset="one", asked="12").values()
    )

    # it goes on: what is there is not measured again, another set is
    some = ["--methods", "labels_only_head,dawid_skene,ours"]
    assert bench.main([*words, *some]) == 0
    assert "# n = 16, asked about: 12; points of macro_f1 over labels_only_head" in capsys.readouterr().out
    both = (tmp_path / "judges.jsonl").read_text()
    assert both.startswith(before)
    added = [json.loads(line) for line in both[len(before) :].splitlines()]
    assert {(one["dataset"], one["method"]) for one in added} == {
        ("two", method) for method in some[1].split(",")
    }
    assert bench.main([*words, *some]) == 0
    assert (tmp_path / "judges.jsonl").read_text() == both

    # all the labels of the pool are known to those who may use them, and to nobody else
    whole = figures.values("all_labels", 16, "macro_f1", dataset="one")
    assert min(whole.values()) > 0.6
    assert whole != figures.values("labels_only", 16, "macro_f1", dataset="one")


def test_a_recipe_that_is_changed_is_another_method(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path / "cache"))
    words = [
        "judges", "--data", str(write_set(tmp_path / "one")), "--n", "16", "--seeds", "0", "--asked", "all",
        "--methods", "labels_only,ours,article", "--set", "selection.kind=random", "--json",
        str(tmp_path / "judges.jsonl"), "--agents", "second.jsonl",
    ]  # fmt: skip
    assert bench.main(words) == 0
    figures = Figures(tmp_path / "judges.jsonl").figures
    assert {one.method for one in figures} == {"labels_only", "ours selection.kind=random", "article"}
    assert {one.dataset for one in figures} == {"one (second)"}
    # one agent alone: a call a post
    calls, asked = (
        next(one.value for one in figures if one.metric == metric and one.method.startswith("ours"))
        for metric in ("calls", "asked")
    )
    assert calls <= asked + 16
    assert "ours selection.kind=random" in capsys.readouterr().out


def test_posts_are_split_as_the_protocol_says(tmp_path) -> None:
    (judged,) = find_sets(write_set(tmp_path / "one"))
    splits = draw(judged, 20, seed=3, validation=0.2)
    assert (len(splits.test), len(splits.labelled), len(splits.validation)) == (28, 16, 4)
    assert len(splits.pool) == POSTS - 48
    for part in (splits.test, splits.labelled, splits.validation):
        assert sum(post.label == "fruit" for post in part) * 2 == len(part)
    assert all(post.label is None for post in splits.pool)
    assert set(splits.truth) == {post.id for post in splits.pool}
    assert draw(judged, 20, seed=3, validation=0.2) == splits
    assert draw(judged, 20, seed=4, validation=0.2) != splits
    with pytest.raises(DataError, match="labels"):
        draw(judged, 200, seed=0, validation=0.2)


def test_sets_and_agents_are_found_or_missed_by_name(tmp_path) -> None:
    write_set(tmp_path / "one", agents=("b", "c", "a"))
    (judged,) = find_sets(tmp_path)
    assert (judged.name, [file.stem for file in judged.agents]) == ("one", ["a", "b"])
    (judged,) = find_sets(tmp_path, "one", "c,b.jsonl")
    assert (judged.name, [file.stem for file in judged.agents]) == ("one (c+b)", ["c", "b"])
    with pytest.raises(DataError, match=r"no answers of \['gpt'\]: expected some of a, b, c"):
        list(find_sets(tmp_path, agents="gpt"))
    with pytest.raises(DataError, match=r"no set is called \['two'\]: expected some of one"):
        list(find_sets(tmp_path, "two"))
    with pytest.raises(DataError, match="holds no set"):
        list(find_sets(tmp_path / "one" / "task.toml"))
    assert bench.main(["judges", "--data", str(tmp_path), "--methods", "magic"]) == 2


def test_seeds_are_a_range_or_a_list() -> None:
    assert numbers("0..3") == [0, 1, 2, 3]
    assert numbers("0,4") == [0, 4]


def test_broken_agents_are_broken_as_they_say(tmp_path) -> None:
    (judged,) = find_sets(write_set(tmp_path / "one", right=1.0))
    corpus = argparse.Namespace(shown=("fruit", "metal"))
    trial = argparse.Namespace(judged=judged, corpus=corpus, folder=tmp_path, seed=0)
    truth = [post.label for post in judged.posts]
    shares = {}
    for kind in BROKEN:
        for file in broken(kind, trial):
            said = [json.loads(line)["label"] for line in file.read_text().splitlines()]
            given = [(one, label) for one, label in zip(said, truth, strict=True) if one is not None]
            shares[kind] = (len(given) / POSTS, np.mean([one == label for one, label in given]))
    assert shares["always"] == (1.0, 0.5)
    assert shares["inverted"] == ((POSTS - 1) / POSTS, 0.0)
    assert shares["random"][1] == pytest.approx(0.5, abs=0.2)
    assert shares["55%"][1] == pytest.approx(0.55, abs=0.2)
    assert shares["abstain 80%"][0] == pytest.approx(0.2, abs=0.15)
    assert shares["abstain 80%"][1] == 1.0


# ---- peers ----------------------------------------------------------------------------------------------


def drawn_answers(accuracies, posts=600):
    random = np.random.RandomState(0)
    truth = random.randint(0, 2, posts)
    answers = np.stack([np.where(random.rand(posts) < a, truth, 1 - truth) for a in accuracies], axis=1)
    answers[random.rand(*answers.shape) < 0.05] = MISSING
    return truth, answers


def test_a_majority_is_hard_and_absent_in_a_tie() -> None:
    answers = np.array([[1, 1], [0, 0], [1, 0], [1, MISSING], [MISSING, MISSING]])
    assert majority(answers).tolist()[:2] == [[0.0, 1.0], [1.0, 0.0]]
    assert np.isnan(majority(answers)).any(1).tolist() == [False, False, True, False, True]
    assert majority(np.array([[2, 2], [0, 1]]), 3)[0].tolist() == [0.0, 0.0, 1.0]


def test_dawid_and_skene_weigh_agents_by_what_the_known_posts_say() -> None:
    truth, answers = drawn_answers([0.95, 0.6])
    known = np.where(np.arange(len(truth)) < 100, truth, -1)
    posterior = dawid_skene(answers, known)
    assert posterior.sum(1) == pytest.approx(1.0)
    assert (posterior[:100, 1] == truth[:100]).all()
    assert np.mean((posterior[100:, 1] > 0.5) == truth[100:]) > 0.9
    # agents that are always wrong are as good, once some posts are known
    posterior = dawid_skene(np.where(answers == MISSING, MISSING, 1 - answers), known)
    assert np.mean((posterior[100:, 1] > 0.5) == truth[100:]) > 0.9


def test_crowdlab_is_as_good_as_its_parts_and_silent_where_nobody_answered() -> None:
    truth, answers = drawn_answers([0.9, 0.8])
    answers[:3] = MISSING
    probs = np.where(truth == 1, 0.7, 0.3)
    found = crowdlab(answers, np.stack([1 - probs, probs], axis=1))[:, 1]
    assert np.isnan(found).sum() == (answers == MISSING).all(1).sum()
    kept = ~np.isnan(found)
    assert np.mean((found[kept] > 0.5) == truth[kept]) > 0.9
    assert ((found[kept] >= 0) & (found[kept] <= 1)).all()


# ---- differences ----------------------------------------------------------------------------------------


def test_models_are_compared_on_the_same_draws_of_posts() -> None:
    random = np.random.default_rng(3)
    truth = random.random(400) < 0.3
    shared, own = random.normal(size=400), random.normal(size=(2, 400))
    ours, theirs = (1 / (1 + np.exp(-(truth + shared + 0.1 * one))) for one in own)
    assert over_posts(truth, ours, ours, 20)["auc"] == (0.0, 0.0, 0.0)
    paired = over_posts(truth, ours, theirs, 200)["auc"]
    assert paired.low < paired.value < paired.high
    # what both have in common, and the luck of the draw, cancel out
    alone = threshold_intervals(truth, ours, 200)["auc"]
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_differences_are_paired_and_their_intervals_are_students() -> None:
    ours = {("a", 0): 0.70, ("a", 1): 0.72, ("a", 2): 0.9, ("b", 0): 0.60, ("b", 1): 0.64}
    theirs = {("a", 0): 0.68, ("a", 1): 0.66, ("b", 0): 0.60, ("b", 1): 0.60}
    found = points_over(ours, theirs)
    assert {key: round(value, 9) for key, value in found.items()} == {
        ("a", 0): 2.0, ("a", 1): 6.0, ("b", 0): 0.0, ("b", 1): 4.0,
    }  # fmt: skip
    # seeds' means 1 and 5; t(.975, 1) = 12.706, standard error 2
    interval = t_over_seeds(found)
    assert interval.value == pytest.approx(3.0)
    assert interval.high - interval.value == pytest.approx(25.412, abs=1e-3)
    assert t_interval([1.5]).low == -np.inf
    assert t_over_seeds({("one", 0): 1.0, ("two", 1): 3.0}) == (2.0, -np.inf, np.inf)
    low, high = bootstrap(found)[1:]
    assert 0.0 <= low < 3.0 < high <= 6.0
    same = bootstrap({("a", 0): 2.0, ("b", 0): 2.0})
    assert (same.value, same.low, same.high) == (2.0, 2.0, 2.0)


def test_what_wins_on_one_half_of_the_sets_is_compared_on_the_other() -> None:
    alone = {(name, seed): 0.5 for name in "abcd" for seed in (0, 1)}
    one = {key: 0.6 if key[0] in "ab" else 0.5 + 0.02 * key[1] for key in alone}
    other = dict.fromkeys(alone, 0.55) | {("a", 2): 0.9}  # a seed that the first lacks is left out
    rows = list(halves_table({"one": one, "other": other}, alone, list("abcd")))[2:]
    assert [row[:5] for row in rows] == ["a + b", "a + c", "a + d", "b + c", "b + d", "c + d"]
    # on c and d the first has .50 and .52: 5 and 3 points behind; t(.975, 1) = 12.706, standard error 1
    assert rows[0].endswith("one, +5.0 | -4.0 [-16.7, +8.7] | +1.0 [-11.7, +13.7] | other")
    assert rows[-1].endswith("other, +4.0 | -5.0 [-5.0, -5.0] | +5.0 [+5.0, +5.0] | one")


def test_nothing_measured_is_an_empty_table() -> None:
    assert list(tables(Figures(None), ["one"], ["ours"], [50], ["500"])) == []

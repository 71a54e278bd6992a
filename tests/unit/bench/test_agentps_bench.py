"""The AgentPS study: which posts, which labels, and a cell from training to figures."""

from __future__ import annotations

from argparse import ArgumentParser

import numpy as np
import pytest
from agentps_helpers import TASK, accelerating, drawn_posts, tiny_embedded
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from runs.bench import agentps, agentps_study
from runs.bench.agentps_epochs import BEST, NAMES, choices
from runs.bench.agentps_study import EXACTLY_ONE, FIRST_ALONE, WAYS, Drawn, Place, cell, relabel
from runs.bench.study import Figure, Figures
from selftrain.data.model_answers import PROVENANCE
from selftrain.errors import DataError


def options(*given):
    parser = ArgumentParser()
    agentps.add_options(parser)
    return parser.parse_args(["--data", "d", "--work", "w", *given])


def test_every_way_that_is_measured_is_known_and_measured_once():
    asked = [(cells.dataset, way) for cells in agentps.TRAINED for way in cells.ways]
    assert len(set(asked)) == len(asked)
    assert {way for _, way in asked} == WAYS.keys()
    (pairs, *_) = agentps.chosen_cells(options("--n", "20", "--ways", "agentps; vanilla"))
    assert (pairs.n, pairs.ways) == (20, ("vanilla", "agentps"))
    with pytest.raises(DataError, match="no ways"):
        agentps.chosen_cells(options("--ways", "agentsp"))


def test_differences_are_those_of_the_same_seed():
    cells = agentps.TRAINED[0]._replace(ways=("vanilla", "agentps"))
    figures = Figures(None)
    for method, values in (("vanilla", (0.5, 0.6)), ("agentps", (0.58, 0.7, 0.9))):
        figures.add(
            Figure("agentps", cells.dataset, method, cells.n, seed, metric, value)
            for seed, value in enumerate(values)
            for metric in ("auc", "macro_f1")
        )
    lines = [line.split() for line in agentps.tables(figures, cells, options())]
    over = lines.index(["#", "pairs,", "exactly", "one:", "points", "of", "auc", "over", "vanilla"])
    # +8 and +10 points; seed 2 has no partner
    assert lines[over + 2][:2] == ["agentps", "+9.0"]


def test_ways_are_compared_with_vanilla_and_agentps_on_the_same_posts(tmp_path):
    cells = agentps.TRAINED[0]._replace(ways=("vanilla", "multitask", "agentps"))
    args = options("--work", str(tmp_path), "--precision", "bfloat16")
    random = np.random.default_rng(0)
    truth = random.random(300) < 0.4
    (tmp_path / "scores").mkdir()
    for way, known in (("vanilla", 0.5), ("multitask", 1.0), ("agentps", 2.0)):
        last = expit(known * truth + random.normal(size=300))
        scores = expit(known * truth + random.normal(size=300))
        kept = tmp_path / "scores" / f"{cells.dataset}, {cells.n}, 1, {way}, bfloat16.npz"
        np.savez(kept, truth=truth, scores=scores, by_epoch=np.stack([scores, last]))
    figures = Figures(tmp_path / "figures.jsonl")
    for _ in range(2):  # what is there is not measured again
        agentps._compare(cells, 1, figures, args)
        agentps._compare(cells, 2, figures, args)  # has no scores
    found = {
        (one.method.replace(", bfloat16", ""), one.metric.removeprefix("auc")): one.value
        for one in figures.figures if one.metric.startswith("auc")
    }  # fmt: skip
    compared = {"multitask over vanilla", "agentps over vanilla", "multitask over agentps"}
    assert {method for method, _ in found} == compared | {f"{one}, the last epoch" for one in compared}
    assert len({(one.method, one.metric) for one in figures.figures}) == len(figures.figures)
    assert found["multitask over agentps", "_high"] < 0 < found["multitask over vanilla", "_low"]
    found = {metric: value for (method, metric), value in found.items() if method == "agentps over vanilla"}
    assert 0.1 < found["_low"] < found[""] < found["_high"] < 0.5
    assert {one.seed for one in figures.figures} == {1}
    ours, theirs = (
        np.load(tmp_path / "scores" / f"{cells.dataset}, {cells.n}, 1, {way}, bfloat16.npz")["by_epoch"][-1]
        for way in ("agentps", "vanilla")
    )
    (of_the_last,) = (
        one.value
        for one in figures.figures
        if one.metric == "auc" and one.method == "agentps, bfloat16 over vanilla, bfloat16, the last epoch"
    )
    assert of_the_last == pytest.approx(roc_auc_score(truth, ours) - roc_auc_score(truth, theirs))


def test_process_labels_as_a_way_wants_them():
    posts = [one for one in drawn_posts(400) if one.process]
    given = relabel(posts, TASK, "as given", 0)
    assert given == posts
    wrong = relabel(posts, TASK, "20 % wrong", 0)
    turned = [a.process[q] != b.process[q] for a, b in zip(posts, wrong, strict=True) for q in a.process]
    assert 0.15 < sum(turned) / len(turned) < 0.25
    assert {one.process["tone"] for one in wrong if "tone" in one.process} <= {"angry", "calm", "merry"}
    assert relabel(posts, TASK, "20 % wrong", 0) == wrong
    assert relabel(posts, TASK, "20 % wrong", 1) != wrong
    few = relabel(posts, TASK, "a quarter", 0)
    assert 0.15 < sum(bool(one.process) for one in few) / len(few) < 0.35


@pytest.mark.parametrize("task", [EXACTLY_ONE, FIRST_ALONE])
def test_the_label_of_a_pair_follows_from_its_answers(task, data_root):
    drawn = agentps_study.pairs(task, 60, 0, data_root)
    posts = [*drawn.train, *drawn.validation, *drawn.test]
    for post in posts:
        first, second = (post.process[one] == "yes" for one in ("first", "second"))
        expected = first != second if task is EXACTLY_ONE else first and not second
        assert (post.label == "yes") == expected
    tweets = [line.partition(": ")[2] for post in posts for line in post.text.split("\n")]
    assert len(set(tweets)) == len(tweets) == 2 * (60 + 20 + 60)
    soft = relabel(drawn.train, task, "soft", 0)
    with pytest.raises(DataError, match="lower --n"):
        agentps_study.pairs(task, 2000, 0, data_root)
    probs = [one.extra[PROVENANCE][q]["probability"] for one in soft for q in ("first", "second")]
    assert all(0.5 <= one <= 1 for one in probs)
    assert len(set(probs)) > 50


def test_no_text_of_hateful_memes_is_in_two_parts(data_root):
    drawn = agentps_study.hateful_memes(500, 1, data_root)
    parts = [{" ".join(one.text.lower().split()) for one in part} for part in drawn[1:]]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert len(drawn.train) == 500
    assert 3000 <= len(drawn.test) < 3020


def test_no_meme_of_harmeme_is_on_both_sides_and_its_severity_is_the_process_answer(data_root):
    drawn = agentps_study.harmeme(200, 0, data_root)
    assert (len(drawn.train), len(drawn.validation)) == (200, agentps_study.VALIDATION)
    test, rest = (
        [*map(agentps_study._contents, part)] for part in (drawn.test, drawn.train + drawn.validation)
    )
    assert not {key for one in test for key in one} & {key for one in rest for key in one}
    harmless = {post.process["severity"] == "not harmful" for post in drawn.test if post.label == "harmless"}
    assert harmless == {True}
    assert {post.process["severity"] for post in drawn.train} == set(drawn.task.question("severity").answers)


def test_rules_for_the_epoch_are_measured_on_what_they_would_choose():
    """The second of three epochs is the best; its probabilities are timid, the third's are sure and wrong."""
    random = np.random.default_rng(0)

    def scored(count):
        truth = random.random(count) < 0.4
        drawn = [random.normal(size=count) + how * truth for how in (0.5, 2.0, 1.0)]
        steep = zip(drawn, (1.0, 1.0, 9.0), strict=True)
        return truth, np.stack([expit(how * (one - one.mean())) for one, how in steep])

    found = dict(choices(*scored(2000), *scored(400)))
    assert set(found) == {*NAMES, BEST}
    assert found["epoch by loss of 300"]["auc"] == pytest.approx(found[BEST]["auc"])
    assert found["the last epoch"]["auc"] < found["epoch by AUC of 50"]["auc"] < found[BEST]["auc"]
    assert found["epoch by AUC of 50"]["auc"] < found["epoch by AUC of 300"]["auc"]


def test_a_cell_is_trained_measured_and_cleared_away(tmp_path, monkeypatch):
    monkeypatch.setattr(agentps_study, "_base", lambda name, seed: tiny_embedded())
    drawn = Drawn(TASK, drawn_posts(40), drawn_posts(20, seed=1), drawn_posts(30, seed=2))
    with accelerating(cpu=True):
        place = Place(tmp_path, 2, cpu=True, precision="float32")
        found = cell(drawn, WAYS["agentps, fed"], "tiny", 0, place).figures
    assert 0 <= found["auc_low"] <= found["auc"] <= found["auc_high"] <= 1
    assert found["best_epoch"] in (1, 2)
    assert "process_auc" in found
    assert not list(tmp_path.iterdir())

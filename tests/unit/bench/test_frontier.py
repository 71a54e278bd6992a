"""What is on the frontier of money, and that points are compared on what all of them have."""

from __future__ import annotations

import pytest

from runs.bench import __main__ as studies
from runs.bench import frontier
from runs.bench.study import Figure, Figures

SETS = ("one", "two")


def drawn():
    """Two sets, seeds 0 and 1; of 100 labels with models seed 0 alone."""
    made = Figures(None)
    values = {(50, ""): 0.6, (100, ""): 0.5, (50, "500"): 0.7, (100, "500"): 0.65}
    for (n, asked), value in values.items():
        for seed in (0, 1) if (n, asked) != (100, "500") else (0,):
            for number, name in enumerate(SETS):
                method = frontier.OURS if asked else frontier.ALONE
                found = value + number / 100 + seed
                made.add([Figure("judges", name, method, n, seed, "macro_f1", found, asked)])
                made.add([Figure("judges", name, method, n, seed, "calls", 900.0 + 200 * number, asked)])
                made.add([Figure("judges", name, method, n, seed, "seconds", 2.0 + number, asked)])
    return made


def test_points_are_means_over_the_sets_and_seeds_that_all_of_them_have():
    found = {(one.n, one.asked): one for one in frontier.points(drawn(), SETS)}
    assert len(found) == 4
    assert found[50, ""].macro_f1 == pytest.approx(0.605)  # with seed 1 it would be 1.105
    assert found[50, "500"].calls == 1000
    assert found[50, ""].price(0.1, 0.001) == 5
    assert found[50, "500"].price(0.1, 0.001) == pytest.approx(6)


def test_only_what_nothing_cheaper_reaches_is_on_the_frontier():
    found = frontier.points(drawn(), SETS)
    best = frontier.frontier(found, 0.1, 0.001)
    assert [(one.n, one.asked) for one in best] == [(50, ""), (50, "500")]
    assert [one.asked for one in frontier.frontier(found, 0.1, 1.0)] == ["", "500"]
    table = list(frontier.lines(drawn(), SETS))
    assert table[2:] == [
        "| 50 labels | 0 | 0.0 | 2.5 | 5.00 | **.605** |",
        "| 50 labels, 500 posts asked | 1,000 | 1.1 | 2.5 | 6.00 | **.705** |",
        "| 100 labels | 0 | 0.0 | 2.5 | 10.00 | .505 |",
        "| 100 labels, 500 posts asked | 1,000 | 1.1 | 2.5 | 11.00 | .655 |",
    ]


def test_models_alone_cost_no_label_and_what_is_as_good_is_the_cheapest_of_its_kind():
    made = drawn()
    values = {"macro_f1": 0.603, "calls": 400.0, "seconds": 1.0}
    for n, name in ((n, name) for n in (50, 100) for name in SETS):
        made.add([Figure("judges", name, frontier.AGENTS, n, 0, *one, "all") for one in values.items()])
    table = list(frontier.same_gain(made, SETS))
    assert table[2:] == [
        "| 50 labels | 50 labels | 0 | 0.0 | 2.5 | 5.00 | .605 |",
        "| | 50 labels, 500 posts asked | 1,000 | 1.1 | 2.5 | 6.00 | .705 |",
        "| | no labels, the whole pool asked | 400 | 0.4 | 1.0 | 0.40 | .603 |",
        "| 100 labels | 100 labels | 0 | 0.0 | 2.5 | 10.00 | .505 |",
        "| | 50 labels, 500 posts asked | 1,000 | 1.1 | 2.5 | 6.00 | .705 |",
        "| | no labels, the whole pool asked | 400 | 0.4 | 1.0 | 0.40 | .603 |",
    ]
    assert "no labels" not in " ".join(frontier.same_gain(drawn(), SETS))


def test_a_file_without_figures_is_said_in_words(tmp_path, capsys):
    assert studies.main(["frontier", "--json", str(tmp_path / "none.jsonl")]) == studies.FAILED
    assert "has no figure of 'ours'" in capsys.readouterr().err

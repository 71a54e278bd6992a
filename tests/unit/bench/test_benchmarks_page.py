"""The page of benchmarks says what the committed figures say, and README what the page says."""

from __future__ import annotations

import json
import re

import pytest

from runs.bench import page
from runs.bench.study import Figure, Figures


@pytest.mark.parametrize("place", [page.PAGE, page.SCALE, page.README], ids=["benchmarks", "scale", "readme"])
def test_every_table_is_as_its_figures(place):
    assert page.written(place) == place.read_text()


def test_the_first_page_has_four_figures_of_the_page_of_benchmarks_and_no_more():
    measured = page.README.read_text().split("## Measured")[1].split("Licence")[0]
    figures = re.findall(r"\.\d{3} ± \.\d{3}", measured)
    assert len(figures) == 4
    assert re.findall(r"\d\.\d|\.\d\d", re.sub("|".join(map(re.escape, figures)), "", measured)) == []
    known = page.PAGE.read_text()
    assert [one for one in figures if one not in known] == []


def drawn(metric, values):
    """Figures of a method and what it may ask -> values by seed."""
    made = Figures(None)
    made.add(
        [
            Figure("judges", "one", method, 100, seed, metric, value, asked)
            for (method, asked), of_seeds in values.items()
            for seed, value in enumerate(of_seeds)
        ]
    )
    return made


OURS, ALONE, ALL = (
    page.Row("ours", "ours"), page.Row("alone", "labels_only"), page.Row("all", "all_labels", ceiling=True)
)  # fmt: skip


def test_a_mean_is_over_the_seeds_and_the_best_that_is_no_ceiling_is_bold():
    values = {("ours", ""): (0.5, 0.7), ("labels_only", ""): (0.4, 0.6), ("all_labels", ""): (0.8, 0.8)}
    column = page.Column("n=100", 100)
    assert list(page.means(drawn("macro_f1", values), (OURS, ALONE, ALL), [column]))[2:] == [
        "| ours | **.600 ± .141** |",
        "| alone | .500 ± .141 |",
        "| all | .800 ± .000 |",
    ]


def test_points_are_paired_by_seed():
    values = {("ours", "5"): (0.52, 0.64), ("labels_only", ""): (0.5, 0.6)}
    made = drawn("macro_f1", values)
    made.add(drawn("auc", values).figures)
    row = list(page.points(made, ["one"], [OURS], [page.Column("5 asked", 100, "5")]))[-1]
    # of 2 and 4 points, Student's t of one degree of freedom: 12.706 standard errors of 1
    assert row == "| ours | +3.0 [-9.7, 15.7], +3.0 [-9.7, 15.7] |"


def test_what_a_variant_has_over_vanilla_is_told_by_seed_and_in_the_mean():
    made = Figures(None)
    for seed, gained in enumerate((0.02, 0.04)):
        values = {"": gained, "_low": gained - 0.01, "_high": gained + 0.03}
        for metric in ("auc", "recall_at_precision_60"):
            made.add(
                Figure("agentps", "memes", "agentps, x over vanilla, x", 40, seed, metric + end, value)
                for end, value in values.items()
            )
    head, _, *lines = page._over_way(
        made, "memes", 40, ", x", reference="vanilla", metrics=page.AUC_AND_RECALL
    )
    assert head == "| points over vanilla | seed 0 | seed 1 | mean |"
    assert lines == [
        "| agentps, AUC | +2.0 [1.0, 5.0] | +4.0 [3.0, 7.0] | +3.0 [-9.7, 15.7] |",
        "| agentps, recall at precision .60 | +2.0 [1.0, 5.0] | +4.0 [3.0, 7.0] | +3.0 [-9.7, 15.7] |",
    ]
    made.add(
        Figure("agentps", "memes", "multitask, x over vanilla, x", 40, 1, "auc" + end, 0.01)
        for end in ("", "_low", "_high")
    )
    _, _, first, _ = page._over_way(made, "memes", 40, ", x", reference="vanilla", metrics={"AUC": "auc"})
    assert first == "| multitask | | +1.0 [1.0, 1.0] | |"


def test_the_last_epoch_of_a_variant_is_told_by_seed():
    made = Figures(None)
    for method, seed, value in (("vanilla", 3, 0.83), ("vanilla", 4, 0.798), ("multitask", 4, 0.82)):
        made.add([Figure("agentps", "memes", f"{method}, x, the last epoch", 40, seed, "auc", value)])
    made.add([Figure("agentps", "memes", "agentps, x", 40, 4, "auc", 0.9)])
    head, _, *lines = page._last_epochs(made, "memes", 40, ", x")
    assert head == "| AUC after the last epoch | seed 3 | seed 4 |"
    assert lines == ["| vanilla | .830 | .798 |", "| multitask | | .820 |"]


def test_a_page_without_the_marks_of_a_table_is_refused():
    with pytest.raises(ValueError, match=r"no marks of the table 'hsol'.*expected <!-- hsol: \.\.\. -->"):
        page.filled("<!-- harmeme: x -->\n<!-- end of harmeme -->\n", "hsol", ["| a |"])


def test_what_was_measured_with_names_all_versions_and_machines(tmp_path):
    file = tmp_path / "some.jsonl"
    rows = [{"versions": {"numpy": one, "torch": "2"}, "machine": "x"} for one in ("1", "2", "1")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert page.measured_with(file) == "[some.jsonl](benchmarks/some.jsonl): numpy 1 and 2, torch 2; x."

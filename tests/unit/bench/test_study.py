"""The file of figures: one line each, and a study that goes on where it stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import backbones
from runs.bench import __main__ as bench
from runs.bench import baselines, loop_study
from runs.bench.loop_study import HARMEME, HSOL, WORDS, LoopStudy, gains, import_data
from runs.bench.study import Figure, Figures
from selftrain.data import preparation
from selftrain.errors import DataError


def figure(method: str, seed: int, value: float) -> Figure:
    return Figure("hsol", "hsol", method, 100, seed, "macro_f1", value)


def test_a_line_holds_every_field_and_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "hsol.jsonl"
    Figures(file).add([figure("ours", 3, 0.9)])
    record = json.loads(file.read_text())
    assert set(record) == {*Figure._fields, "versions", "machine"}
    assert Figures(file).figures == [figure("ours", 3, 0.9)]


def test_what_is_there_is_not_wanted_again(tmp_path: Path) -> None:
    file = tmp_path / "hsol.jsonl"
    Figures(file).add([figure("ours", 0, 0.9)])
    again = Figures(file)
    assert again.has("hsol", "ours", 100, 0)
    assert not again.has("hsol", "ours", 100, 1)
    assert not again.has("hsol", "ours", 50, 0)
    assert not again.has("harmeme", "ours", 100, 0)


def test_a_foreign_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "hsol.jsonl"
    Figures(file).add([figure("ours", 0, 0.9)])
    file.write_text(file.read_text() + '{"value": 1}\n')
    with pytest.raises(DataError, match="line 2"):
        Figures(file)


@pytest.mark.parametrize("left", [1, 9, 40, 0.5, -1])
def test_a_seed_whose_writing_was_cut_off_is_measured_again_and_stands_once(tmp_path: Path, left) -> None:
    file = tmp_path / "hsol.jsonl"
    Figures(file).add([figure("ours", 0, 0.9)])
    whole = file.read_text()
    Figures(file).add([figure("ours", 1, 0.8), figure("ours", 1, 0.7)._replace(metric="auc")])
    *_, first, second = file.read_text().splitlines()
    cut = second[: round(len(second) * left) if left == 0.5 else left]
    file.write_text(torn := f"{whole}{first}\n{cut}")
    again = Figures(file)
    assert again.figures == [figure("ours", 0, 0.9)]
    assert file.read_text() == torn  # who reads changes nothing
    again.add([figure("ours", 1, 0.6)])
    again.add([figure("ours", 2, 0.5)])
    assert Figures(file).figures == [
        figure("ours", seed, value) for seed, value in enumerate((0.9, 0.6, 0.5))
    ]


@pytest.mark.parametrize("text", ["notes", "[1, 2", '{"id": 1}'])
def test_a_file_of_something_else_is_never_cut(tmp_path: Path, text) -> None:
    (tmp_path / "notes").write_text(text)
    with pytest.raises(DataError, match="line 1 is no figure"):
        Figures(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == text


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"fast"', "null"])
def test_a_value_that_is_no_number_is_refused(tmp_path: Path, value) -> None:
    file = tmp_path / "hsol.jsonl"
    Figures(file).add([figure("ours", 0, 0.9)])
    file.write_text(file.read_text().replace('"value": 0.9', f'"value": {value}'))
    with pytest.raises(DataError, match=r"line 1 is no figure .* expected a number"):
        Figures(file)


def test_gains_pair_by_seed() -> None:
    figures = Figures(None)
    figures.add([figure("ours", 0, 0.9), figure("ours", 1, 0.8), figure("ours", 2, 0.1)])
    figures.add([figure("other", 1, 0.7), figure("other", 0, 0.8)])
    (line,) = gains(figures, "hsol", [100])
    # seed 2 has no partner: both remaining differences are 10 points
    assert "other" in line
    assert "+10.00 ± 0.00 points" in line


def test_figures_of_a_changed_recipe_stand_under_a_name_of_their_own(tmp_path: Path, monkeypatch) -> None:
    """The same file holds both, and each is measured though the other is there."""
    study = LoopStudy("sentiment140", "tweets", "nowhere", sizes=(4,))
    (tmp_path / "tweets").mkdir()
    for name in ("positive", "negative"):
        lines = (f"{name} tweet {i}\n" for i in range(9))
        (tmp_path / "tweets" / f"{name}.txt").write_text("".join(lines))
    monkeypatch.setattr(loop_study, "loop_rounds", lambda recipe, *_: recipe)
    monkeypatch.setattr(loop_study, "summarise", lambda recipe: {"macro_f1": recipe.rounds.max / 10})
    monkeypatch.setattr(loop_study, "_whole_run", lambda *_: {"seconds": 1.0})
    monkeypatch.setattr(baselines, "BASELINES", {"labels_only": lambda corpus, seed: {"macro_f1": 0.5}})
    monkeypatch.setattr(preparation, "prepare", lambda *_, **__: SimpleNamespace(corpus=None))
    monkeypatch.setattr(backbones, "load_backbone", lambda _: None)
    monkeypatch.setitem(loop_study.STUDIES, "stand_in", (study,))
    given = {
        "study": "stand_in",
        "data": tmp_path,
        "n": "4",
        "seeds": "0",
        "methods": "ours",
        "peers": "all",
        "most": None,
    }
    for changes in ([], ["rounds.max=7"], []):
        loop_study.run(SimpleNamespace(**given, set=changes), Figures(tmp_path / "figures.jsonl"))
    found = [one for one in Figures(tmp_path / "figures.jsonl").figures if one.metric != "seconds"]
    assert {one.method: one.value for one in found} == {
        "labels_only": 0.5, "ours": 0.4, "labels_only rounds.max=7": 0.5, "ours rounds.max=7": 0.7,
    }  # fmt: skip
    assert len(found) == 4


def test_the_table_gives_mean_and_spread() -> None:
    figures = Figures(None)
    figures.add([figure("ours", 0, 0.9), figure("ours", 1, 0.8)])
    (line,) = figures.table()
    assert "0.8500 ± 0.0707" in line
    assert "2 seeds" in line


def test_an_unknown_study_is_refused_with_the_names_of_all(capsys) -> None:
    with pytest.raises(SystemExit):
        bench.main(["missing"])
    assert "'hsol', 'harmeme'" in capsys.readouterr().err


def test_a_study_parses_its_own_options(monkeypatch) -> None:
    study, seen = ModuleType("runs.bench.stand_in"), []

    def run(args, figures):
        assert figures.file is None
        seen.append(args.seeds)

    study.add_options, study.run = lambda parser: parser.add_argument("--seeds"), run
    monkeypatch.setitem(sys.modules, study.__name__, study)
    monkeypatch.setitem(bench.STUDIES, "stand_in", bench.Study("of this test", "--seeds 0,1"))
    assert bench.main(["stand_in", "--seeds", "0,1,2"]) == 0
    assert bench.main(["stand_in", "--quick"]) == 0
    assert bench.main(["stand_in", "--seeds", "4", "--quick"]) == 0
    assert seen == ["0,1,2", "0,1", "4"]


@pytest.mark.parametrize("name", bench.STUDIES)
def test_every_study_explains_its_options_and_knows_those_of_its_quick_run(name, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main([name, "--help"])
    assert ended.value.code == 0
    explained = capsys.readouterr().out
    given = [word for word in bench.STUDIES[name].quick.split() if word.startswith("--")]
    assert given
    assert [word for word in given if word not in explained] == []


def test_what_a_study_cannot_do_is_said_without_a_traceback(tmp_path: Path, capsys) -> None:
    assert bench.main(["hsol", "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_large_set_is_cut_to_as_many_posts_of_each_class_always_the_same(tmp_path: Path) -> None:
    source = tmp_path / "tweets"
    source.mkdir()
    for name, count in {"positive": 9, "negative": 4}.items():
        (source / f"{name}.txt").write_text("".join(f"{name} tweet {i}\n" for i in range(count)))
    study = LoopStudy("sentiment140", "tweets", "nowhere", most=3)
    manifests = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        settings = dict(one.split("=") for one in import_data(study, tmp_path, tmp_path / place))
        manifests.append(Path(settings["data.manifest"]).read_text())
        # of 6 posts 4.8 are train: HSOL's 6,000 a round would be refused
        assert 0 < int(settings["selection.k"]) <= 4
    assert manifests[0] == manifests[1]
    labels = [json.loads(line)["label"] for line in manifests[0].splitlines()]
    assert (labels.count("positive"), labels.count("negative")) == (3, 3)


def test_a_set_that_is_not_there_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    for study in (HSOL, HARMEME, *WORDS):
        with pytest.raises(DataError, match=r"is not there: (get|clone) .* --data"):
            import_data(study, tmp_path, tmp_path)

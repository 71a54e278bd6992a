"""The page of a run as text: hand-made folders in every state, hostile strings, no browser and no model."""

from __future__ import annotations

import errno
import json
import os
import re

import numpy as np
import pytest
from class_helpers import both
from page_helpers import ParsedPage
from report_helpers import HOSTILE, PLAIN, figures, lines, made, trust, verdict

from selftrain.cli import main
from selftrain.errors import RunStateError, StorageError
from selftrain.report import run_page as report
from selftrain.rounds import finished_rounds
from selftrain.runs import Run
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import Scored, write_scores


def page_of(folder):
    return report.write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run with everything that a page shows, for tests that only look."""
    folder = made(tmp_path_factory.mktemp("runs"), PLAIN)
    scored(folder, 1)
    (folder.path / "trust.json").write_text(json.dumps(trust(PLAIN)))
    return folder


@pytest.fixture(scope="module")
def plain_page(plain):
    return page_of(plain)


def words(text):
    return " ".join(ParsedPage(text).text.split())


# ---- what comes from outside ------------------------------------------------------------------------


def test_hostile_strings_are_shown_and_change_nothing_of_the_page(tmp_path):
    def full(place, said):
        folder = made(place, said)
        (folder.path / "trust.json").write_text(json.dumps(trust(said)))
        return folder

    page = page_of(full(tmp_path / "bad", HOSTILE))
    seen, plain = ParsedPage(page), ParsedPage(page_of(full(tmp_path / "good", PLAIN)))
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in plain.tags]
    assert [set(attributes) for _, attributes in seen.tags] == [set(a) for _, a in plain.tags]
    assert (seen.raw["style"], seen.raw["script"]) == (plain.raw["style"], plain.raw["script"])
    outside = page.replace(seen.raw["script"], "").replace(seen.raw["style"], "")
    assert not [mark for mark in outside if mark != "\n" and not mark.isprintable()]
    for name in HOSTILE:
        assert HOSTILE[name] not in page, name
    assert "<script>document.title='owned'</script><img src=x" in seen.text
    assert "{{ 7*7 }}{% raw %}{#" in seen.text
    assert "\\x1b[31m\\x07\\u202e\\u2066\\u2028\\u2029\\x9b" in seen.text


def test_the_json_in_the_page_ends_no_element_and_gives_the_strings_back(tmp_path):
    seen = ParsedPage(page_of(made(tmp_path, HOSTILE)))
    data = {key: raw for key, raw in seen.raw.items() if key not in ("script", "style")}
    assert set(data) == {"listing", "verdicts-0", "pictures-0"}
    for raw in data.values():
        assert raw.isascii()
        assert not set(raw) & set("<>&")
    text, images, said, *_ = json.loads(data["verdicts-0"])[0]
    assert text.startswith("</script></style></title><script>document.title='owned'</script>")
    assert "\\u202e" in text
    assert "\u202e" not in text
    assert images[0][1] == "<img src=x onerror=document.title='owned'>\\u202e.png"
    assert said[0][5].endswith("\\x00\\ud800")
    listing = json.loads(data["listing"])
    assert listing["classes"][0].startswith("<b onclick='x()'>invitation</b>")
    assert "\u202e" not in "".join(listing["agents"] + listing["id"] + listing["snippet"])


def test_the_policy_of_the_page_allows_this_script_and_this_style_and_nothing_else(plain_page):
    seen = ParsedPage(plain_page)
    rules = seen.rules_of_file()
    assert rules["img-src"] == "data:"
    assert {a["href"][0] for tag, a in seen.tags if "href" in a and tag != "link"} == {"#"}
    assert [a["href"] for a in seen.all("link")] == ["data:,"]
    assert {a.get("type") for a in seen.all("script")} == {None, "application/json"}


def test_no_two_elements_share_an_id(plain_page):
    names = ParsedPage(plain_page).ids()
    assert len(names) > 40
    assert len(set(names)) == len(names)


# ---- figures ----------------------------------------------------------------------------------------


def test_kept_and_rolled_back_rounds_differ_in_the_curve_and_in_words(plain_page):
    page = plain_page

    def marks(name):
        group = re.search(rf'<g class="mark-{name}">(.*?)</g></g>', page, re.DOTALL)
        return len(re.findall(r"<use ", group[1]))

    assert (marks("kept-validation"), marks("lost-validation")) == (2, 1)
    assert (marks("kept-test"), marks("lost-test")) == (2, 1)
    assert "round 1 0.625 kept, round 2 0.600 rolled back" in page
    rows = [attributes["class"] for attributes in ParsedPage(page).all("tr") if "class" in attributes]
    assert rows[:3] == ["", "best", "lost"]


def test_the_closing_figures(plain, plain_page):
    page = report.gather(plain)
    assert (page.summary.labels_alone.validation, page.summary.best.validation) == (0.5, 0.625)
    assert (len(page.quarantine.rows), page.quarantine.total) == (200, 201)
    said = words(plain_page)
    assert "0.625 +0.125 on the labels alone (0.500)" in said
    assert "The first 200 are shown" in said
    assert "Finished: all 2 rounds are done." in said


def test_pseudo_label_precision_is_that_of_grown(tmp_path):
    told = {"posts": 6, "truth_known": 5, "precision": 0.8125}
    exact = made(tmp_path / "exact", PLAIN, pseudo_labels=told)
    assert report.gather(exact).summary.pseudo_label_precision == 0.8125
    assert "0.812 of grown.jsonl" in words(page_of(exact))


def scored(folder, number):
    random = np.random.default_rng(0)
    labels = np.arange(40, dtype=np.int8) % 2
    one = Scored([f"v{i}" for i in range(40)], labels, both(labels * 2 - 1 + random.normal(0, 1, 40)))
    names = (PLAIN["negative"], PLAIN["positive"])
    write_scores(folder.round_path(number), {"validation": one, "test": one}, names)


def test_scores_give_curves_and_without_them_a_word_stands_there(tmp_path, plain, plain_page):
    folder = made(tmp_path, PLAIN)
    assert not any(split.reliability for split in report.gather(folder).final)
    scored(folder, 2)  # not the best round
    assert "This round kept no scores" in words(page_of(folder))
    assert "This round kept no scores" not in words(plain_page)
    for part in ("precision-recall", "reliability", "histogram"):
        assert f'id="{part}-' in plain_page
    final = report.gather(plain).final
    assert [split.name for split in final] == ["validation", "test"]
    assert sum(sum(side) for side in final[0].histogram) == 40


def test_trust_is_shown_and_its_absence_said(tmp_path, plain_page):
    folder = made(tmp_path, PLAIN)
    said = words(page_of(folder))
    assert "The agents were not measured" in said
    said = words(plain_page)
    assert "The agents were not measured" not in said
    assert "Cohen's kappa of agent/x 0.375" in said
    assert "0.800 0.400 to 0.900" in said
    assert "Near chance" in said
    assert "Brier score 0.125" in said
    no_calibration = trust(PLAIN)
    no_calibration["agents"]["agent"]["calibration"] = None
    (folder.path / "trust.json").write_text(json.dumps(no_calibration))
    assert "How well their probabilities hold was not measured" in words(page_of(folder))


def test_classes_stand_in_one_order_in_all_tables_of_a_page(tmp_path):
    folder, measured = made(tmp_path, PLAIN), trust(PLAIN)
    # an agent knows no order of the classes; one that nobody was known to be of may be among the answers
    measured["agents"]["agent"]["confusion"] = {
        "negative": {"else": 6, "negative": 1, "positive": 2, "(failed)": 0},
        "positive": {"else": 7, "negative": 3, "positive": 4, "(failed)": 5},
    }
    (folder.path / "trust.json").write_text(json.dumps(measured))
    said = words(page_of(folder))
    assert "answer by column positive negative else (failed) positive 4 3 7 5 negative 2 1 6 0" in said


def test_cost_is_summed_and_its_absence_said(tmp_path):
    assert "No costs were recorded" in words(page_of(made(tmp_path / "none", PLAIN)))
    cost = {"calls": 12, "stored": 3, "failed": 1, "prompt": 4000, "cached": 3000, "image": 0}
    cost |= {"completion": 80, "seconds": 2.5}
    page = report.gather(made(tmp_path / "paid", PLAIN, cost=cost))
    assert page.cost.calls == 36
    assert page.cost.prompt == 12_000
    assert "36 12,240 tokens" in words(report.render(page))
    free = dict.fromkeys(cost, 0)
    assert report.gather(made(tmp_path / "free", PLAIN, cost=free)).cost is None


def test_what_ran_where_is_summed_over_rounds_and_places(tmp_path):
    assert "No stage was recorded" in words(page_of(made(tmp_path / "none", PLAIN)))
    stages = [
        {"stage": "features", "posts": 900, "seconds": 4.5, "workers": {"<b>": 1, "other": 2}},
        {"stage": "select", "posts": 40, "seconds": 0.25, "workers": {}},
    ]
    page = report.gather(made(tmp_path / "run", PLAIN, stages=stages))
    assert [(one.stage, one.posts, one.seconds) for one in page.stages] == [
        ("features", 2700, 13.5), ("select", 120, 0.75),
    ]  # fmt: skip
    said = words(report.render(page))
    assert "features 1 worker on <b>, 2 workers on other 2,700 13.5 200.0" in said
    assert "select in process 120 0.8 160.0" in said


def test_behaviour_is_summed_over_rounds(tmp_path):
    (summed,) = report.gather(made(tmp_path, PLAIN)).behaviour.values()
    assert (summed.label, summed.abstain) == (3 * (1 + 2), 1 + 2)
    assert summed.changed_mind == 2
    assert summed.changed_for_better == 0
    assert (summed.right, summed.truth_known) == (6, 8)


@pytest.mark.parametrize("simulated", [True, False])
def test_simulated_agents_are_named_at_the_top(tmp_path, simulated):
    assert ("SIMULATED agents" in words(page_of(made(tmp_path, PLAIN, simulated=simulated)))) == simulated


# ---- runs in every state ----------------------------------------------------------------------------


def test_a_run_without_a_finished_round_has_a_page_that_says_so(tmp_path):
    folder = made(tmp_path, PLAIN, scores=(), kept=())
    said = words(page_of(folder))
    assert "Stopped before round 0 was finished" in said
    assert said.count("No round is finished yet") >= 3
    with folder.locked():
        assert "Under way: round 0" in words(page_of(folder))


def test_round_0_alone(tmp_path):
    said = words(page_of(made(tmp_path, PLAIN, scores=(0.5,), kept=(True,))))
    assert "No round has verified a post yet" in said
    assert "No verdict yet" in said
    assert "No agent has judged a post yet" in said


def test_verdicts_of_a_round_that_was_killed_before_its_end_can_be_read(tmp_path):
    folder = made(tmp_path, PLAIN)
    recipe = folder.recipe_path
    recipe.write_text(recipe.read_text().replace("max = 2", "max = 9"))
    path = folder.open_round(3)
    page = report.gather(folder)
    assert [number for number, _ in page.verdicts.rounds] == [2, 1]
    lines(path / "verdicts.jsonl", [verdict(PLAIN, "plain")])
    page = report.gather(folder)
    assert page.verdicts.rounds[0] == (3, "unfinished")
    assert not page.finished
    assert "Stopped before round 3" in page.state


def test_manifest_pictures_and_quarantine_that_went(tmp_path):
    folder = made(tmp_path, PLAIN)
    (tmp_path / "plain.png").unlink()
    browser = report.gather(folder).verdicts.table
    text, images, _, remark, _ = json.loads(str(browser.chunks[0]))[0]
    assert (text, images) == ("plain", [])
    assert "plain.png" in remark
    (tmp_path / "manifest.jsonl").unlink()
    (folder.path / "quarantine.jsonl").unlink()
    page = report.gather(folder)
    assert json.loads(str(page.verdicts.table.chunks[0]))[0][0] is None
    assert page.verdicts.without_text == 1
    assert "Nothing was left out" in words(report.render(page))


def test_no_run_and_a_damaged_record_are_said(tmp_path):
    with pytest.raises(RunStateError, match="not a run folder"):
        report.write_report(RunFolder(tmp_path))
    damaged = made(tmp_path / "damaged", PLAIN)
    damaged.close_round(1, {"round": 1, "kept": True})
    with pytest.raises(RunStateError, match="incomplete"):
        report.write_report(damaged)


def test_a_full_disk_is_a_storage_error_and_leaves_the_older_page(tmp_path, monkeypatch):
    folder = made(tmp_path, PLAIN)
    before = report.write_report(folder).read_bytes()

    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        report.write_report(folder)
    assert (folder.path / "report.html").read_bytes() == before


def test_the_command_renders_the_same_page_again_where_it_is_asked_to(tmp_path, capsys):
    folder = made(tmp_path, PLAIN)
    first = report.write_report(folder).read_bytes()
    (folder.path / "report.html").unlink()
    assert main(["report", str(folder.path)]) == 0
    assert capsys.readouterr().out == f"{folder.path / 'report.html'}\n"
    assert (folder.path / "report.html").read_bytes() == first
    assert main(["report", str(folder.path), "--out", str(tmp_path / "there.html")]) == 0
    assert (tmp_path / "there.html").read_bytes() == first


# ---- as the rounds pass -----------------------------------------------------------------------------


def passing(folder, rounds):
    """What `Run.rounds` does with the rounds of the loop."""
    return Run(folder.path)._logged(iter(rounds))


def events_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.path.glob("tensorboard/*")}


def told(events):
    return {int(path.suffixes[-2][1:]) for path in events}


def test_every_round_is_logged_once_and_the_report_follows_when_the_reader_stops(tmp_path):
    folder = made(tmp_path, PLAIN)
    rounds = finished_rounds(folder)
    reading = passing(folder, rounds)
    assert next(reading) is rounds[0]
    assert not (folder.path / "report.html").exists()
    reading.close()
    assert (folder.path / "report.html").exists()
    first = events_of(folder)
    assert told(first) == {0}
    assert list(passing(folder, rounds)) == rounds
    second = events_of(folder)
    assert told(second) == {0, 1, 2}
    assert first.items() <= second.items()  # a round that was logged is not logged again
    assert list(passing(folder, rounds)) == rounds
    assert events_of(folder) == second


def test_an_error_of_the_loop_still_leaves_a_report_and_none_without_a_round(tmp_path):
    def broken(rounds):
        yield from rounds
        raise ArithmeticError("the loss is nan")

    folder = made(tmp_path, PLAIN)
    with pytest.raises(ArithmeticError):
        list(passing(folder, broken([])))
    assert not (folder.path / "report.html").exists()
    with pytest.raises(ArithmeticError):
        list(passing(folder, broken(finished_rounds(folder)[:1])))
    assert (folder.path / "report.html").exists()


def test_a_report_that_cannot_be_written_is_no_secret(tmp_path):
    folder = made(tmp_path, PLAIN)
    (folder.path / "report.html").mkdir()
    with pytest.raises(StorageError, match=r"report\.html"):
        list(passing(folder, finished_rounds(folder)[:1]))


def test_a_run_without_test_labels_or_a_curve_leaves_their_parts_out(tmp_path):
    folder = made(tmp_path, PLAIN)
    for number, score in enumerate((0.5, 0.625, 0.6)):
        one = figures(number, PLAIN, kept=number < 2, macro_f1=score, agents={}, curve=[])
        del one["test"]
        folder.close_round(number, one)
    page = report.gather(folder)
    assert [split.name for split in page.final] == ["validation"]
    said = words(report.render(page))
    assert "Loss by round" not in said
    assert "Test macro-F1" not in said

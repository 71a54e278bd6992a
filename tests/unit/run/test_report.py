"""The page of a run: hand-made folders, hostile strings, no model."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from selftrain.cli import main
from selftrain.errors import RunStateError, StorageError
from selftrain.rounds import Round
from selftrain.run import report
from selftrain.run.folder import RunFolder
from selftrain.start import Run

HOSTILE = {
    "text": "<script>alert('text')</script></style>\x1b[31m\u202e \"><img src=x onerror=alert(1)> {{ 7*7 }}",
    "id": "id\"'><script src=https://evil.test/x.js></script>{% raw %}",
    "rationale": "</p></style><style>@import url(https://evil.test/)</style>\x00\x9b {{ recipe }} \ud800",
    "positive": "<b onclick='x()'>invitation</b>{{ self }}",
    "negative": "</title><iframe src='//evil.test'>&amp;",
    "reason": "<a href=javascript:alert(1)>'{#\x07",
}
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "bdi", "div", "table", "tr"),
    *("th", "td", "svg", "line", "text", "polyline", "circle", "article", "dl", "dt", "dd", "code"),
}


def chosen(posts, precision=None):
    return {"posts": posts, "precision": precision, "by_class": {}}


def figures(number, *, kept, macro_f1, simulated=False):
    return {
        "round": number, "kept": kept, "simulated": simulated, "seconds": 1.25, "grown": 10 + number,
        "validation": {"posts": 20, "macro_f1": macro_f1}, "test": {"posts": 20, "macro_f1": macro_f1 - 0.1},
        "candidates": chosen(4 * number), "consistent": chosen(3 * number, 0.75 if number else None),
        "divergent": chosen(number), "theta": 0.4 if number else None,
        "curve": [{"epoch": 1, "macro_f1": 0.1, "loss": {"pn": 9.0}},
                  {"epoch": 2, "macro_f1": 0.2, "loss": {"pn": 0.5, "soft": 0.25}}],
    }  # fmt: skip


def verdict(post_id, said, *, label):
    named = {"agent": "reviewer", "step": 0, "state": "label", "label": label, "probability": 0.7}
    abstained = {"agent": "user", "step": 1, "state": "abstain", "label": None, "probability": None}
    judgments = [one | {"rationale": said["rationale"]} for one in (named, abstained)]
    classifier = {"classifier_label": label, "classifier_probability": 0.9}
    return {"post_id": post_id, **classifier, "consistent": False, "judgments": judgments}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def made(place, said, scores=(0.5, 0.625, 0.6), kept=(True, True, False), *, simulated=False, disputes=1):
    folder = RunFolder(place / "run")
    folder.path.mkdir(parents=True)
    lines(place / "manifest.jsonl", [{"id": said["id"], "text": said["text"]}])
    recipe = {
        "seed": 0, "data": {"manifest": str(place / "manifest.jsonl")}, "selection": {"again": True},
        "rounds": {"max": len(scores) - 1, "patience": 3},
    }  # fmt: skip
    environment = {
        "identity": {"task": said["reason"]}, "simulated": simulated, "splits": {"pool": 9},
        "classes": {"positive": said["positive"], "negative": said["negative"]},
    }  # fmt: skip
    with folder.locked():
        folder.begin(recipe, environment)
        for number, (score, keep) in enumerate(zip(scores, kept, strict=True)):
            path = folder.open_round(number)
            verdicts = [verdict(said["id"], said, label=said["negative"])] * disputes if number else []
            lines(path / "verdicts.jsonl", verdicts)
            folder.close_round(number, figures(number, kept=keep, macro_f1=score, simulated=simulated))
    lines(
        folder.path / "quarantine.jsonl",
        [{"kind": "row", "line": 1, "id": said["id"], "reason": said["reason"]}] * 201,
    )
    return folder


PLAIN = dict.fromkeys(HOSTILE, "plain")


class Seen(HTMLParser):
    """Every tag with its attributes, and the text of the style elements."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.styles, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem == "style":
            self.styles.append(data)
        else:
            self.text += data


# ---- the page ---------------------------------------------------------------------------------------


def test_hostile_strings_are_shown_and_change_nothing_of_the_page(tmp_path):
    page = report.write_report(made(tmp_path / "bad", HOSTILE)).read_text(encoding="utf-8")
    seen = Seen(page)
    plain = Seen(report.write_report(made(tmp_path / "good", PLAIN)).read_text(encoding="utf-8"))
    assert seen.tags == plain.tags
    assert seen.styles == plain.styles
    assert not [mark for mark in page if mark != "\n" and not mark.isprintable()]
    for name in ("text", "id", "rationale", "positive", "negative", "reason"):
        assert HOSTILE[name] not in page, name
    for shown in ("<script>alert('text')</script></style>\\x1b[31m\\u202e", "{{ 7*7 }}", "{% raw %}"):
        assert shown in seen.text
    assert "\\x9b {{ recipe }} \\ud800" in seen.text


def test_the_page_asks_for_nothing_and_holds_no_script(tmp_path):
    seen = Seen(report.write_report(made(tmp_path, PLAIN)).read_text(encoding="utf-8"))
    assert {tag for tag, _ in seen.tags} <= ALLOWED
    names = {name for _, attributes in seen.tags for name in attributes}
    assert not names & {"src", "href", "style", "action"}
    assert not {name for name in names if name.startswith("on")}
    assert not [word for word in ("url(", "@import") if word in "".join(seen.styles)]
    (policy,) = [a["content"] for _, a in seen.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "prefers-color-scheme: dark" in "".join(seen.styles)
    assert any(attributes.get("name") == "viewport" for _, attributes in seen.tags)


def test_rounds_kept_and_rolled_back_are_told_apart_in_words_and_in_the_plot(tmp_path):
    seen = Seen(report.write_report(made(tmp_path, PLAIN)).read_text(encoding="utf-8"))
    assert "round 2: 0.600, rolled back" in seen.text
    assert "round 1: 0.625, kept" in seen.text
    hollow = [attributes.get("class") == "hollow" for tag, attributes in seen.tags if tag == "circle"]
    assert hollow == [False, False, True]
    (line,) = [attributes["points"].split() for tag, attributes in seen.tags if tag == "polyline"]
    heights = [float(point.split(",")[1]) for point in line]
    assert heights[1] < heights[2] < heights[0]  # SVG counts downwards


def test_the_closing_figures_and_the_counts_of_what_is_shown(tmp_path):
    page = report.gather(made(tmp_path, PLAIN, disputes=51))
    assert (page.summary.labels_alone.validation, page.summary.best.validation) == (0.5, 0.625)
    assert (len(page.disputes), page.disputed) == (50, 51)
    assert (len(page.quarantine), page.quarantined) == (200, 201)
    assert page.disputes[0].text == "plain"
    shown = Seen(report.render(page)).text
    assert "+0.125" in shown
    assert "the first 50 are shown" in shown
    assert "the first 200 are shown" in shown
    assert "all 2 rounds are done" in shown


@pytest.mark.parametrize("simulated", [True, False])
def test_simulated_agents_are_named_at_the_top(tmp_path, simulated):
    text = Seen(report.write_report(made(tmp_path, PLAIN, simulated=simulated)).read_text()).text
    assert ("SIMULATED agents" in text) == simulated


def test_round_0_alone_and_a_manifest_that_went(tmp_path):
    alone = made(tmp_path / "alone", PLAIN, scores=(0.5,), kept=(True,))
    assert "No divergent verdict in round 0" in report.write_report(alone).read_text()
    folder = made(tmp_path / "went", PLAIN)
    (tmp_path / "went" / "manifest.jsonl").unlink()
    (folder.path / "quarantine.jsonl").unlink()
    text = report.write_report(folder).read_text()
    assert "the manifest is not there any more" in text
    assert "Nothing was left out" in text


def test_the_command_renders_again_and_says_where(tmp_path, capsys):
    folder = made(tmp_path, PLAIN)
    first = report.write_report(folder).read_bytes()
    (folder.path / "report.html").unlink()
    assert main(["report", str(folder.path)]) == 0
    assert capsys.readouterr().out == f"{folder.path / 'report.html'}\n"
    assert (folder.path / "report.html").read_bytes() == first


def test_no_run_no_round_and_a_damaged_record_are_said(tmp_path):
    with pytest.raises(RunStateError, match="not a run folder"):
        report.write_report(RunFolder(tmp_path))
    with pytest.raises(RunStateError, match="no finished round"):
        report.write_report(made(tmp_path / "none", PLAIN, scores=(), kept=()))
    damaged = made(tmp_path / "damaged", PLAIN)
    damaged.close_round(1, {"round": 1, "kept": True})
    with pytest.raises(RunStateError, match="incomplete"):
        report.write_report(damaged)


# ---- as the rounds pass -----------------------------------------------------------------------------


def passing(folder, rounds):
    """What `Run.rounds` does with the rounds of the loop."""
    return Run(None, folder.path)._told(iter(rounds))


def events_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.path.glob("tensorboard/*")}


def test_every_round_is_told_once_and_the_report_follows_when_the_reader_stops(tmp_path):
    folder = made(tmp_path, PLAIN)
    rounds = [Round(one) for one in folder.finished_rounds()]
    reading = passing(folder, rounds)
    assert next(reading) is rounds[0]
    assert not (folder.path / "report.html").exists()
    reading.close()
    assert (folder.path / "report.html").exists()
    first = events_of(folder)
    assert {int(path.suffixes[-2][1:]) for path in first} == {0}
    assert list(passing(folder, rounds)) == rounds
    second = events_of(folder)
    assert {int(path.suffixes[-2][1:]) for path in second} == {0, 1, 2}
    assert first.items() <= second.items()  # a round that was told is not told again
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
        list(passing(folder, broken([Round(folder.finished_rounds()[0])])))
    assert (folder.path / "report.html").exists()


def test_a_report_that_cannot_be_written_is_no_secret(tmp_path):
    folder = made(tmp_path, PLAIN)
    (folder.path / "report.html").mkdir()
    with pytest.raises(StorageError, match=r"report\.html"):
        list(passing(folder, [Round(folder.finished_rounds()[0])]))

"""What a page is put together from: charts as SVG, thumbnails within a budget, the browser's data."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from report_helpers import PLAIN, judgment, lines, made, verdict

from selftrain.cli.tables import verdict_lines
from selftrain.report import run_page as report
from selftrain.report import verdict_browser as browser
from selftrain.report.post_history import JudgedPosts
from selftrain.web import charts, table
from selftrain.web.charts import COLOURS, to_svg
from selftrain.web.html import as_json, render_page, security_policy
from selftrain.web.pictures import SIDE, embed

# ---- charts -----------------------------------------------------------------------------------------


def drawn(**options):
    figure = Figure(figsize=(4, 3))
    figure.add_subplot().plot([0, 1], [0, 1], **{"color": COLOURS["first"], "marker": "o", **options})
    for axes in figure.axes:
        for one in (*axes.spines.values(), *axes.xaxis.get_ticklines(), *axes.yaxis.get_ticklines()):
            one.set_visible(False)
        axes.tick_params(colors=COLOURS["faint"])
    return figure


def test_a_chart_takes_its_colours_from_the_page_and_holds_no_style():
    svg = str(to_svg(drawn(), "one", "a line"))
    root = ElementTree.fromstring(svg)
    assert "style" not in {name for element in root.iter() for name in element.attrib}
    assert "stroke-first" in svg
    assert "fill-faint" in svg
    assert not [value for value in COLOURS.values() if value in svg]
    assert "xlink" not in svg
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == "a line"
    assert root.findall(".//{http://www.w3.org/2000/svg}text")  # letters, not outlines


def test_every_reference_of_a_chart_is_met_inside_of_it_and_two_charts_share_no_id():
    seen = set()
    for name in ("one", "two"):
        root = ElementTree.fromstring(str(to_svg(drawn(), name, "a line")))
        ids = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
        wanted = {e.attrib["href"][1:] for e in root.iter() if "href" in e.attrib}
        wanted |= {e.attrib["clip-path"][5:-1] for e in root.iter() if "clip-path" in e.attrib}
        assert wanted
        assert wanted == ids
        assert not ids & seen
        seen |= ids


def test_the_same_figures_give_the_same_bytes_and_a_foreign_colour_is_refused():
    assert to_svg(drawn(), "one", "x") == to_svg(drawn(), "one", "x")
    with pytest.raises(ValueError, match="#ff0000"):
        to_svg(drawn(color="#ff0000"), "one", "x")


@pytest.mark.parametrize("rounds", [1, 2, 60])
def test_runs_of_any_length_can_be_drawn(rounds):
    points = [charts.RoundPoint(n, n % 3 == 0, 0.5 + n / 200, None) for n in range(rounds)]
    for svg in ElementTree.fromstring(f"<p>{charts.rounds_curve(points)}</p>"):
        texts = svg.findall(".//{http://www.w3.org/2000/svg}text")
        assert 2 <= len(texts) <= 25  # axes that can be read, however many rounds there are
    numbers = list(range(rounds))
    bars = charts.stacked_bars(numbers, [numbers, numbers], [True] * rounds, "bars", "bars")
    assert "nan" not in str(bars)


def test_a_gap_in_a_series_breaks_the_line_and_draws_nothing_false():
    whole = str(charts.lines([1, 2, 3], {"a": [0.5, 0.6, 0.7]}, "l", "l", share=True))
    broken = str(charts.lines([1, 2, 3], {"a": [0.5, None, 0.7]}, "l", "l", share=True))
    assert whole.count("<use ") == 3
    assert broken.count("<use ") == 2
    assert "nan" not in broken


# ---- pictures ---------------------------------------------------------------------------------------


def noisy(path, seed, size=(900, 600)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def decoded(url):
    assert url.startswith("data:image/webp;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))


def test_thumbnails_are_small_and_equal_pictures_are_shared(tmp_path):
    one, copy, other = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    noisy(one, 1)
    copy.write_bytes(one.read_bytes())
    noisy(other, 2)
    found = embed([one, copy, other, one])
    assert len(found.urls) == 2
    assert found.place[one] == found.place[copy] != found.place[other]
    assert max(decoded(found.urls[0]).size) == SIDE
    assert (found.left_out, found.unreadable) == (0, {})


def test_the_budget_and_the_number_are_kept_and_the_first_ones_go_first(tmp_path):
    paths = [noisy(tmp_path / f"{n}.png", n, (200, 150)) for n in range(6)]
    size = len(embed(paths[:1]).urls[0])
    few = embed(paths, budget=3 * size + size // 2)
    assert sum(map(len, few.urls)) <= 3 * size + size // 2
    assert set(few.place) == set(paths[:3])
    assert few.left_out == 3
    assert set(embed(paths, most=2).place) == set(paths[:2])


def test_a_picture_that_cannot_be_read_is_named_and_stops_nothing(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(noisy(tmp_path / "good.png", 0).read_bytes()[:500])
    found = embed([broken, tmp_path / "gone.png", tmp_path / "good.png"])
    assert list(found.place) == [tmp_path / "good.png"]
    assert set(found.unreadable) == {broken, tmp_path / "gone.png"}
    assert all(found.unreadable.values())


# ---- the browser's data -----------------------------------------------------------------------------


def gathered(folder, outcomes=None):
    outcomes = outcomes or {1: "kept", 2: "rolled back"}
    return browser.gather_verdicts(JudgedPosts(folder, outcomes), outcomes, ("positive", "negative"))


def test_the_index_counts_what_the_verdicts_say(tmp_path):
    found = gathered(made(tmp_path, PLAIN))
    listing = json.loads(str(found.table.listing))
    assert listing["round"] == [2, 1]  # newest first
    assert listing["agents"] == ["agent", "other agent"]
    assert listing["changed"] == [0b01, 0b01]
    assert listing["failed"] == [0b10, 0b10]
    assert listing["label"] == [0, 0]
    assert listing["truth"] == [1, 1]  # the manifest's label
    assert found.truth_known
    assert (found.table.shown, found.table.total, found.table.embedded) == (2, 2, 1)


def test_divergent_verdicts_come_before_consistent_ones(tmp_path):
    folder = made(tmp_path, PLAIN)
    said = [judgment(PLAIN, PLAIN["agent"], 0, PLAIN["positive"])]
    agreed = verdict(PLAIN, "agreed") | {"consistent": True, "judgments": said}
    lines(folder.round_path(2) / "verdicts.jsonl", [agreed, verdict(PLAIN, "plain")])
    listing = json.loads(str(gathered(folder).table.listing))
    assert listing["id"] == ["plain", "agreed", "plain"]
    assert listing["consistent"] == [0, 1, 0]


def test_of_more_verdicts_than_a_page_takes_the_newest_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "MOST_RECORDS", 1)
    found = gathered(made(tmp_path, PLAIN))
    assert (found.table.shown, found.table.total) == (1, 2)
    assert found.rounds == [(2, "rolled back")]


def test_chunks_hold_a_fixed_number_of_records_and_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "CHUNK", 2)
    monkeypatch.setattr(table, "PICTURE_CHUNK", 3)
    folder = made(tmp_path, PLAIN)
    rows, verdicts = [], []
    for number in range(5):
        Image.new("RGB", (30 + number, 20), (number * 40, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append({"id": f"p{number}", "text": "x", "images": [f"{number}.png"]})
        verdicts.append(verdict(PLAIN, f"p{number}"))
    lines(tmp_path / "manifest.jsonl", rows)
    lines(folder.round_path(2) / "verdicts.jsonl", verdicts)
    found = gathered(folder, {2: "kept"})
    assert [len(json.loads(str(chunk))) for chunk in found.table.chunks] == [2, 2, 1]
    assert json.loads(str(found.table.listing))["pictures"] == 3
    assert [len(json.loads(str(chunk))) for chunk in found.table.pictures] == [3, 2]
    assert not found.truth_known


def test_texts_are_cut_harder_when_all_together_would_be_too_long(tmp_path, monkeypatch):
    folder = made(tmp_path, PLAIN | {"text": "long " * 400, "rationale": "why " * 400})
    assert gathered(folder).table.cut == 1200
    monkeypatch.setattr(table, "TEXT_BUDGET", 2000)
    found = gathered(folder)
    assert found.table.cut == 240
    text, _, said, *_ = json.loads(str(found.table.chunks[0]))[0]
    assert text.endswith(" […]")
    assert len(text) <= 240 + 4
    assert len(said[0][5]) <= 160 + 4


def test_the_clause_that_decides_and_thoughts_are_there_and_can_be_searched(tmp_path):
    folder = made(tmp_path, PLAIN)
    details = {"clause": "2. No insults.", "reasoning": "Hm. Whom does it name?"}
    judged = verdict(PLAIN, "plain")
    judged["judgments"][0]["details"] = details
    lines(folder.round_path(2) / "verdicts.jsonl", [judged])
    table = gathered(folder, {2: "kept"}).table
    _, _, (record, *others), *_ = json.loads(str(table.chunks[0]))[0]
    assert record[5:] == [f"[2. No insults.] {PLAIN['rationale']}", "Hm. Whom does it name?"]
    assert {(one[5], one[6]) for one in others} == {(PLAIN["rationale"], "")}
    (shown,) = folder.verdicts(2)
    assert f"[2. No insults.] {PLAIN['rationale']}" in "\n".join(map(str, verdict_lines(shown)))


def test_json_for_a_page_refuses_what_is_not_json():
    with pytest.raises(ValueError, match="JSON"):
        as_json(float("nan"))
    assert as_json(["</script>&", "\u2028"]) == '["\\u003c/script\\u003e\\u0026","\\u2028"]'


# ---- templates --------------------------------------------------------------------------------------


def test_a_page_without_a_script_allows_none():
    assert "script-src 'none'" in security_policy("a", "")
    assert "'none'" not in security_policy("a", "b").split(";")[1]


def test_a_value_that_a_template_forgets_to_give_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render_page("comparison.html.j2", {"runs": []}, folder=Path(report.__file__).parent)

"""The report in a real Chromium: opened from disk, used by mouse and keyboard, and attacked."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from browser_helpers import DESKTOP
from report_helpers import HOSTILE, PLAIN, made, trust, weigh

from agents.judgment import Verdict
from runs.bench.__main__ import main as bench
from runs.bench.synthetic_run import synthetic_run
from selftrain.report.compare import compare, render_comparison
from selftrain.report.run_page import write_report
from selftrain.store.run_dir import RunFolder

pytestmark = pytest.mark.integration

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs the development tools: pip install .[dev]"
)
expect = sync_api.expect

VERDICTS, LARGE = 450, 10_000
PHONE = {"width": 375, "height": 760}
ROWS = "#list > li"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 450 verdicts in three rounds, 40 pictures."""
    made_here = synthetic_run(tmp_path_factory.mktemp("pages"), VERDICTS, rounds=3, pictures=40)
    write_report(made_here)
    return made_here


@pytest.fixture
def page(open_page, folder):
    return open_page(folder.path / "report.html")


def verdicts_of(folder):
    """(round, verdict) as the files have them."""
    return [(number, one) for number in (1, 2, 3) for one in map(Verdict.to_json, folder.verdicts(number))]


def shown(page):
    """How many verdicts the filters leave."""
    return int(page.locator("#count").inner_text().split()[0].replace(",", ""))


def ids(page):
    return page.locator(f"{ROWS} .row-id").all_inner_texts()


# ---- opening ----------------------------------------------------------------------------------------


def test_it_opens_with_a_page_of_verdicts_and_the_first_one_told(page):
    expect(page).to_have_title("run - selftrain")
    expect(page.locator("#count")).to_have_text("450 of 450 verdicts")
    expect(page.locator(ROWS)).to_have_count(100)
    expect(page.locator("#detail h3")).to_have_text(ids(page)[0])
    expect(page.locator("#detail .party")).to_have_count(3)
    assert page.locator("svg.chart:visible").count() >= 9


def test_a_real_run_opens_with_its_words_and_pictures(open_page, small_run):
    page = open_page(small_run / "report.html")
    verdict = RunFolder(small_run).verdicts(2)[0].to_json()
    page.locator("#f-search").fill(verdict["post_id"])
    expect(page.locator(ROWS)).not_to_have_count(100)
    row = page.locator(ROWS).filter(has_text=verdict["post_id"]).first
    row.click()
    for judgment in verdict["judgments"]:
        expect(page.locator("#detail")).to_contain_text(judgment["rationale"])


@pytest.mark.parametrize("scores", [(), (0.5,)])
def test_a_run_that_has_just_begun_opens(open_page, tmp_path, scores):
    begun = made(tmp_path, PLAIN, scores=scores, kept=(True,) * len(scores))
    page = open_page(write_report(begun))
    expect(page.locator("#verdicts")).to_contain_text("No verdict yet")


def test_a_long_list_of_what_was_left_out_does_not_part_the_page(open_page, tmp_path):
    begun = made(tmp_path, PLAIN)
    row = {"kind": "copy", "id": "a", "line": 1, "reason": "its text matches 'b'"}
    (begun.path / "quarantine.jsonl").write_text((json.dumps(row) + "\n") * 200)
    page = open_page(write_report(begun))
    frame = page.get_by_role("region", name="What was left out")
    assert frame.locator("tbody tr").count() == 200
    assert frame.bounding_box()["height"] < 600


def test_without_javascript_the_figures_are_there_and_the_browser_says_what_it_needs(open_page, folder):
    page = open_page(folder.path / "report.html", java_script_enabled=False)
    expect(page.locator(".tile").first).to_be_visible()
    expect(page.locator("noscript p")).to_be_visible()
    expect(page.locator("#browser")).to_be_hidden()


def test_ten_thousand_verdicts_keep_document_and_file_small(open_page, tmp_path):
    large = synthetic_run(tmp_path, LARGE, rounds=5, pictures=300)
    file = write_report(large)
    assert file.stat().st_size < 25_000_000
    page = open_page(file)
    expect(page.locator("#count")).to_have_text("10,000 of 10,000 verdicts")
    page.locator("#f-search").fill("turnip violin")
    expect(page.locator("#count")).not_to_have_text("10,000 of 10,000 verdicts")
    page.locator("#f-search").fill("")
    expect(page.locator("#count")).to_have_text("10,000 of 10,000 verdicts")
    page.locator("#list").focus()
    page.keyboard.press("End")
    expect(page.locator("#page-of")).to_have_text("page 100 of 100")
    expect(page.locator(ROWS)).to_have_count(100)
    assert page.evaluate("document.querySelectorAll('*').length") < 5000


def test_the_bench_prints_what_a_browser_takes(browser, capsys):
    with ThreadPoolExecutor(1) as pool:  # a thread of its own: Playwright drives one browser a thread
        assert pool.submit(bench, ["report", "--n", "60"]).result() == 0
    figures = {line.split()[1]: float(line.split()[3]) for line in capsys.readouterr().out.splitlines()}
    assert set(figures) == {
        "write_seconds", "page_mb", "open_seconds", "search_seconds", "search_again_seconds", "sort_seconds",
        "elements",
    }  # fmt: skip
    assert all(value > 0 for value in figures.values())


# ---- finding ----------------------------------------------------------------------------------------


def last_and_first(verdict):
    first, last = {}, {}
    for one in verdict["judgments"]:
        first.setdefault(one["agent"], one)
        last[one["agent"]] = one
    return first, last


def changed(verdict, agent):
    first, last = last_and_first(verdict)
    return first[agent]["label"] != last[agent]["label"]


def failed(verdict, agents):
    return any(one["state"] == "failed" and one["agent"] in agents for one in verdict["judgments"])


BOTH = ("reviewer", "user")
FILTERS = {
    "round": ("f-round", "2", lambda number, one: number == 2),
    "consistent": ("f-set", "1", lambda _, one: one["consistent"]),
    "divergent": ("f-set", "0", lambda _, one: not one["consistent"]),
    "class": ("f-class", "0", lambda _, one: one["classifier_label"] == "harmful"),
    "any changed": ("f-changed", "any", lambda _, one: any(changed(one, a) for a in BOTH)),
    "user changed": ("f-changed", "1", lambda _, one: changed(one, "user")),
    "any failed": ("f-failed", "any", lambda _, one: failed(one, BOTH)),
    "reviewer failed": ("f-failed", "0", lambda _, one: failed(one, ("reviewer",))),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_leaves_what_the_files_say(page, folder, name):
    control, value, holds = FILTERS[name]
    expected = {one["post_id"] for number, one in verdicts_of(folder) if holds(number, one)}
    assert 0 < len(expected) < VERDICTS
    page.locator(f"#{control}").select_option(value)
    expect(page.locator("#count")).to_have_text(f"{len(expected)} of 450 verdicts")
    assert set(ids(page)) <= expected
    page.locator("#clear").click()
    expect(page.locator("#count")).to_have_text("450 of 450 verdicts")
    expect(page.locator("#clear")).to_be_hidden()


def test_filters_join_and_the_truth_is_one_of_them(page, folder):
    truth = {
        row["id"]: row["label"]
        for row in map(json.loads, (folder.path.parent / "manifest.jsonl").read_text().splitlines())
    }
    expected = [
        one for number, one in verdicts_of(folder)
        if number == 1 and not one["consistent"] and truth[one["post_id"]] != one["classifier_label"]
    ]  # fmt: skip
    assert expected
    page.locator("#f-round").select_option("1")
    page.locator("#f-set").select_option("0")
    page.locator("#f-truth").select_option("wrong")
    expect(page.locator("#count")).to_have_text(f"{len(expected)} of 450 verdicts")
    expect(page.locator("#detail .chip.bad").first).to_contain_text("classifier wrong")


def test_search_finds_ids_texts_and_rationales_whatever_their_case(page, folder):
    _, verdict = verdicts_of(folder)[-1]
    for wanted in (verdict["post_id"], verdict["judgments"][-1]["rationale"].upper()[:60]):
        page.locator("#f-search").fill("no such words in it")
        expect(page.locator("#count")).to_have_text("0 of 450 verdicts")
        page.locator("#f-search").fill(wanted)
        expect(page.locator("#count")).to_have_text("1 of 450 verdicts")
        assert ids(page) == [verdict["post_id"]]
    page.locator("#f-search").fill("no such words in it")
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#detail")).to_be_empty()


def test_verdicts_are_sorted_by_probability_both_ways(page, folder):
    by = sorted(verdicts_of(folder), key=lambda item: item[1]["classifier_probability"])
    page.locator("#f-sort").select_option("low")
    expect(page.locator("#detail h3")).to_have_text(by[0][1]["post_id"])
    page.locator("#f-sort").select_option("high")
    expect(page.locator("#detail h3")).to_have_text(by[-1][1]["post_id"])
    figures = [float(text) for text in page.locator(f"{ROWS} .figure").all_inner_texts()]
    assert figures == sorted(figures, reverse=True)


def test_a_posterior_is_shown_filtered_and_sorted(open_page, tmp_path):
    weighed = made(tmp_path, PLAIN, scores=(0.5, 0.6, 0.7, 0.65), kept=(True, True, True, False))
    page = open_page(write_report(weigh(weighed, PLAIN, {1: [0.9], 2: [0.2, 0.6], 3: [0.75, 0.3, 0.35]})))
    page.locator("#f-sort").select_option("q-low")
    assert ids(page) == ["3", "2", "1"]
    page.locator("#f-sort").select_option("q-high")
    assert ids(page) == ["1", "2", "3"]
    page.locator("#f-sure").select_option("overruled")
    expect(page.locator("#count")).to_have_text("1 of 3 verdicts")
    expect(page.locator("#detail .together .step-head")).to_have_text(
        "negative0.800learned: the threshold is 0.70"
    )
    expect(page.locator("#detail .evidence dt")).to_have_text(["classifier", "agent", "base rate"])
    expect(page.locator("#detail .evidence dd")).to_have_text(["\u22120.50", "+1.50", "+0.25"])
    page.locator("#clear").click()
    page.locator("#f-sure").select_option("0.8 0.95")
    expect(page.locator("#count")).to_have_text("2 of 3 verdicts")
    page.locator("#f-decided").select_option("0")
    assert ids(page) == ["1"]
    expect(page.locator("#detail")).to_contain_text("Round by round: 1: positive 0.900 → 2: positive 0.600")


def test_pages_follow_each_other_and_end(page):
    first = ids(page)
    expect(page.locator("#previous-page")).to_be_disabled()
    page.locator("#next-page").click()
    expect(page.locator("#page-of")).to_have_text("page 2 of 5")
    assert not set(ids(page)) & set(first)
    for _ in range(3):
        page.locator("#next-page").click()
    expect(page.locator("#next-page")).to_be_disabled()
    expect(page.locator(ROWS)).to_have_count(50)
    page.locator("#previous").click()
    expect(page.locator("#place")).to_have_text("400 of 450")
    expect(page.locator("#page-of")).to_have_text("page 4 of 5")


# ---- keyboard ---------------------------------------------------------------------------------------


def chosen(page):
    return page.locator(f"{ROWS}[aria-selected] .row-id").inner_text()


def test_j_and_k_walk_over_the_ends_of_a_page_and_slash_searches(page):
    names = ids(page)
    page.keyboard.press("j")
    assert chosen(page) == names[1]
    page.keyboard.press("k")
    page.keyboard.press("k")  # there is nothing before the first
    assert chosen(page) == names[0]
    page.locator(ROWS).last.click()
    page.keyboard.press("j")
    expect(page.locator("#page-of")).to_have_text("page 2 of 5")
    page.keyboard.press("p")
    expect(page.locator("#page-of")).to_have_text("page 1 of 5")
    page.keyboard.press("/")
    expect(page.locator("#f-search")).to_be_focused()
    page.keyboard.type("jk")  # letters now, not keys
    expect(page.locator("#f-search")).to_have_value("jk")
    page.keyboard.press("Escape")
    expect(page.locator("#list")).to_be_focused()


def test_the_list_has_arrows_and_tells_a_screen_reader_where_it_stands(page):
    listbox = page.get_by_role("listbox", name="Verdicts")
    listbox.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    active = listbox.get_attribute("aria-activedescendant")
    option = page.locator(f"#{active}")
    assert option.get_attribute("aria-selected") == "true"
    assert (option.get_attribute("aria-posinset"), option.get_attribute("aria-setsize")) == ("2", "450")
    page.keyboard.press("Enter")
    expect(page.locator("#detail h3")).to_be_focused()


def test_keys_can_be_switched_off(page):
    before = chosen(page)
    page.locator("#keys").uncheck()
    page.locator("body").press("j")
    assert chosen(page) == before


# ---- pictures ---------------------------------------------------------------------------------------


def blurred(page):
    return [
        "blur" in style
        for style in page.locator(".picture img").evaluate_all(
            "all => all.map((one) => getComputedStyle(one).filter)"
        )
    ]


def test_pictures_are_blurred_until_asked_for_one_by_one_and_all(page):
    expect(page.locator("header .care")).to_contain_text("Pictures are blurred until you ask for them")
    page.locator("#f-search").fill("post-000460")  # the first of the pool: it has a picture
    expect(page.locator("#detail h3")).to_have_text("post-000460")
    picture = page.locator("#detail button.picture")
    expect(picture).to_have_count(1)
    assert picture.locator("img").evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 320
    assert blurred(page) == [True]
    assert picture.get_attribute("aria-pressed") == "false"
    picture.click()
    assert blurred(page) == [False]
    assert picture.get_attribute("aria-pressed") == "true"
    page.locator("#f-search").fill("post-000461")
    expect(page.locator("#detail h3")).to_have_text("post-000461")
    assert blurred(page) == [True]  # each is asked for anew
    page.locator("#pictures").check()
    assert blurred(page) == [False]
    page.locator("#f-search").fill("post-000462")
    expect(page.locator("#detail h3")).to_have_text("post-000462")
    assert blurred(page) == [False]


# ---- what comes from outside ------------------------------------------------------------------------


def test_hostile_strings_are_text_wherever_they_stand(open_page, tmp_path):
    bad = made(tmp_path, HOSTILE)
    (bad.path / "trust.json").write_text(json.dumps(trust(HOSTILE)))
    page = open_page(write_report(bad))
    expect(page.locator(ROWS)).to_have_count(2)
    for control in ("f-class", "f-changed", "f-failed", "f-round"):
        for option in page.locator(f"#{control} option").all():
            page.locator(f"#{control}").select_option(option.get_attribute("value"))
        page.locator("#clear").click()
    page.locator("#f-search").fill("</script>")
    expect(page.locator("#count")).to_have_text("2 of 2 verdicts")
    page.locator(".picture").first.click()
    assert "owned" not in page.title()
    said = page.locator("body").inner_text()
    for text in (
        "<script>document.title='owned'</script>",
        "{{ 7*7 }}",
        "\\u202e",
        "\\x1b[31m",
        "<svg onload=alert(1)>",
    ):
        assert text in said, text
    assert not set(said) & set("\u202e\u2066\u2028\x1b\x07")
    assert page.locator("iframe, object, embed, script[src], link[rel=stylesheet]").count() == 0
    assert page.locator("#detail img").count() == 1  # the post's own
    assert page.evaluate("document.querySelectorAll('[onerror],[onload],[onclick]').length") == 0


REMOTE = "http://127.0.0.1:9/x.png"
# what an injected script could try, had one got in
BREAK_IN = """(remote) => {
  window.refused = [];
  document.addEventListener("securitypolicyviolation", (one) => window.refused.push(one.effectiveDirective));
  new Image().src = remote;
  const style = document.createElement("style");
  style.textContent = "body { display: none }";
  document.head.append(style);
  const thrown = [];
  for (const attempt of [
    () => { document.body.innerHTML += "<b>x</b>"; },
    () => document.body.setAttribute("onclick", "document.title = 'owned'"),
    () => { document.createElement("script").text = "document.title = 'owned'"; },
  ]) {
    try { attempt(); } catch (error) { thrown.push(error.name); }
  }
  return thrown;
}"""


def test_the_policy_stops_what_would_get_in_all_the_same(open_page, folder):
    page = open_page(folder.path / "report.html")
    thrown = page.evaluate(BREAK_IN, REMOTE)
    assert thrown == ["TypeError"] * 3  # markup, a handler and a script: none is taken as text
    page.wait_for_function("['img-src', 'style-src-elem'].every((one) => window.refused.includes(one))")
    assert page.title() == "run - selftrain"
    assert page.evaluate("getComputedStyle(document.body).display") == "block"
    assert [text for text in open_page.noise if "Content Security Policy" in text]
    assert open_page.refused == [(REMOTE, "csp")]  # before it left the machine
    # what the browser says of it is no fault of the page
    open_page.noise.clear()
    open_page.refused.clear()
    open_page.fetched.remove(REMOTE)


# ---- everybody --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(folder, tmp_path_factory):
    """The report, and the page of two runs side by side."""
    place = tmp_path_factory.mktemp("beside")
    bare = made(place, PLAIN)
    (place / "compare.html").write_text(render_comparison(compare([folder, bare])), encoding="utf-8")
    return {"report": folder.path / "report.html", "compare": place / "compare.html"}


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "compare"])
def test_axe_finds_no_serious_fault(open_page, pages, name, scheme, viewport):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(pages[name], color_scheme=scheme, viewport=viewport)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    faults = axe.run(page).response["violations"]
    told = [
        (one["id"], one["nodes"][0]["html"]) for one in faults if one["impact"] in ("serious", "critical")
    ]
    assert told == []


@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_phone_shows_it_without_scrolling_sideways(open_page, pages, name):
    page = open_page(pages[name], viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    sizes = page.locator("svg.chart:visible").evaluate_all(
        "all => all.map((one) => 11 * one.getBoundingClientRect().width / one.viewBox.baseVal.width)"
    )
    assert sizes
    assert min(sizes) > 9  # pixels of a chart's letters


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_endless_names_do_not_widen_the_page(open_page, tmp_path, viewport):
    bad = made(tmp_path, HOSTILE)
    (bad.path / "trust.json").write_text(json.dumps(trust(HOSTILE)))
    page = open_page(write_report(bad), viewport=viewport)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]


def test_dark_and_light_are_two_themes(open_page, folder):
    grounds = [
        open_page(folder.path / "report.html", color_scheme=scheme).evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        for scheme in ("light", "dark")
    ]
    light, dark = (sum(map(int, re.findall(r"\d+", ground)[:3])) for ground in grounds)
    assert light > 700
    assert dark < 100

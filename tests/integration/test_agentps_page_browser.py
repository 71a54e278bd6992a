"""The page of an AgentPS model in a real Chromium: sorted, filtered, searched, by keyboard, on a phone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from agentps_page_helpers import FOUR, TWO, drawn_posts, made, picture_files
from browser_helpers import DESKTOP
from report_helpers import CONTROLS, MARKUP

from selftrain.data.posts import Post
from selftrain.data.task import Question, Task, TaskClass
from selftrain.report.model_page import write_report

pytestmark = pytest.mark.integration

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs the development tools: pip install .[dev]"
)
expect = sync_api.expect

POSTS = 130
PHONE = {"width": 360, "height": 760}
ROWS = "#case-rows > tr"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of three questions, 130 posts, a third with pictures."""
    place = tmp_path_factory.mktemp("pages")
    posts = drawn_posts(TWO, POSTS, pictures=picture_files(place / "pictures", 8))
    made(place / "memes", TWO, posts, epochs=4, steps=40)
    write_report(place / "memes", place / "memes" / "report.html")
    return place / "memes"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A model with a few posts: every kind of row, fewer of each."""
    place = tmp_path_factory.mktemp("few") / "memes"
    posts = drawn_posts(TWO, 14, pictures=picture_files(place.parent / "pictures", 4))
    made(place, TWO, posts, epochs=4, steps=40, unread=(posts[-1].id,))
    write_report(place, place / "report.html")
    return place


@pytest.fixture(scope="module")
def few_four(tmp_path_factory):
    """An evaluation of four classes, no question, and a few posts."""
    place = tmp_path_factory.mktemp("few-four")
    made(place, FOUR, drawn_posts(FOUR, 14))
    write_report(place, place / "report.html")
    return place


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """An evaluation of four classes and no question."""
    place = tmp_path_factory.mktemp("four")
    made(place, FOUR, drawn_posts(FOUR, 60))
    write_report(place, place / "report.html")
    return place


@pytest.fixture
def page(open_page, model):
    return open_page(model / "report.html")


@pytest.fixture(scope="module")
def records(model):
    return [json.loads(line) for line in (model / "validation.jsonl").read_text().splitlines()]


def ids(page):
    return page.locator(f"{ROWS} .case-id").all_inner_texts()


def said(record, question):
    odds = record["process"][question]
    return max(odds, key=odds.get)


def missed(record, question):
    truth = record["truth"][question]
    return truth is not None and truth != said(record, question)


def worst_first(records):
    return sorted(records, key=lambda one: one["probabilities"][one["truth"]["final"]])


# ---- opening ----------------------------------------------------------------------------------------


def test_it_opens_with_the_worst_posts_and_what_was_said_of_each_question(page, records):
    expect(page).to_have_title("memes - selftrain")
    expect(page.locator("#count")).to_have_text("130 of 130 posts")
    expect(page.locator(ROWS)).to_have_count(50)
    worst = worst_first(records)
    assert ids(page) == [one["id"] for one in worst[:50]]
    first = page.locator(ROWS).first
    cells = first.locator("td").all_inner_texts()
    assert len(cells) == 2 + 4
    assert worst[0]["text"][:60] in cells[0]
    assert cells[1].strip().endswith(worst[0]["truth"]["final"])
    assert f"{worst[0]['probabilities']['offensive']:.3f}" in cells[2]
    assert "✗ wrong" in cells[2]
    for text, name in zip(cells[3:], ("insult", "target", "faces"), strict=True):
        looked = next(question.answers[0] for question in TWO.questions if question.name == name)
        truth = worst[0]["truth"][name]
        assert f"{worst[0]['process'][name][looked]:.3f}" in text
        assert said(worst[0], name) in text
        right = "✓ right" if truth == said(worst[0], name) else f"✗ truth: {truth}"
        assert ("truth not known" if truth is None else right) in text


def test_without_javascript_the_figures_are_there_and_the_table_says_what_it_needs(open_page, model):
    page = open_page(model / "report.html", java_script_enabled=False)
    expect(page.locator(".tile").first).to_be_visible()
    expect(page.locator("noscript p")).to_be_visible()
    expect(page.locator("#cases-browser")).to_be_hidden()


def test_ten_thousand_posts_keep_document_and_file_small(open_page, tmp_path):
    made(tmp_path, TWO, drawn_posts(TWO, 10_000), resamples=2)
    write_report(tmp_path, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 10_000_000
    page = open_page(tmp_path / "report.html")
    expect(page.locator("#count")).to_have_text("10,000 of 10,000 posts")
    expect(page.locator(ROWS)).to_have_count(50)
    page.locator("#f-search").fill("post-0077")
    expect(page.locator("#count")).to_have_text("10 of 10,000 posts")
    page.locator("#f-search").fill("")
    expect(page.locator("#count")).to_have_text("10,000 of 10,000 posts")
    page.locator(ROWS).first.focus()
    page.keyboard.press("End")
    expect(page.locator("#page-of")).to_have_text("page 200 of 200")
    assert page.evaluate("document.querySelectorAll('*').length") < 5000


# ---- finding ----------------------------------------------------------------------------------------


FILTERS = {
    "wrong": ("f-outcome", "wrong", lambda one: one["label"] != one["truth"]["final"]),
    "right": ("f-outcome", "right", lambda one: one["label"] == one["truth"]["final"]),
    "true class": ("f-truth", "1", lambda one: one["truth"]["final"] == "harmless"),
    "said": ("f-said", "0", lambda one: one["label"] == "offensive"),
    "any question": ("f-question", "any", lambda one: any(missed(one, q.name) for q in TWO.questions)),
    "one question": ("f-question", "2", lambda one: missed(one, "target")),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_leaves_what_the_records_say(page, records, name):
    control, value, holds = FILTERS[name]
    expected = [one["id"] for one in worst_first(records) if holds(one)]
    assert 0 < len(expected) < POSTS
    page.locator(f"#{control}").select_option(value)
    expect(page.locator("#count")).to_have_text(f"{len(expected)} of 130 posts")
    assert ids(page) == expected[:50]
    page.locator("#clear").click()
    expect(page.locator("#count")).to_have_text("130 of 130 posts")
    expect(page.locator("#clear")).to_be_hidden()


def test_filters_join_and_search_finds_ids_and_texts_whatever_their_case(page, records):
    page.locator("#f-outcome").select_option("wrong")
    page.locator("#f-question").select_option("3")
    wanted = [one for one in records if one["label"] != one["truth"]["final"] and missed(one, "faces")]
    expect(page.locator("#count")).to_have_text(f"{len(wanted)} of 130 posts")
    for text in (wanted[0]["id"].upper(), wanted[0]["text"][:40].upper()):
        page.locator("#f-search").fill("no such words in it")
        expect(page.locator("#count")).to_have_text("0 of 130 posts")
        expect(page.locator("#empty")).to_be_visible()
        page.locator("#f-search").fill(text)
        expect(page.locator("#count")).to_have_text("1 of 130 posts")
        assert ids(page) == [wanted[0]["id"]]


def test_a_heading_sorts_both_ways_and_says_so(page, records):
    heading = page.locator("th[data-sort='1']")
    for way, sign in (("descending", -1), ("ascending", 1)):
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == way
        by = sorted(records, key=lambda one: sign * one["process"]["insult"]["yes"])
        assert ids(page) == [one["id"] for one in by[:50]]
    assert page.locator("th[aria-sort]").count() == 1
    page.locator("#f-sort").select_option("file:up")
    assert ids(page) == [one["id"] for one in records[:50]]
    assert page.locator("th[aria-sort]").count() == 0
    page.locator("th[data-sort='truth'] button").click()
    first = page.locator(f"{ROWS} td.truth .label").all_inner_texts()
    assert set(first) == {"offensive"}


def test_posts_whose_class_is_not_known_come_last_and_are_neither_right_nor_wrong(open_page, tmp_path):
    posts = [replace(one, label=None) if n < 3 else one for n, one in enumerate(drawn_posts(TWO, 20))]
    made(tmp_path, TWO, posts)
    write_report(tmp_path, tmp_path / "report.html")
    page = open_page(tmp_path / "report.html")
    for order in ("wrong:up", "truth:up", "truth:down"):
        page.locator("#f-sort").select_option(order)
        assert ids(page)[-3:] == [one.id for one in posts[:3]]
    assert page.locator(f"{ROWS} td.truth").last.inner_text() == "not known"
    shown = 0
    for outcome, expected in (("unknown", 3), ("right", None), ("wrong", None)):
        page.locator("#f-outcome").select_option(outcome)
        found = page.locator(ROWS).count()
        assert expected in (None, found)
        shown += found
    assert shown == 20


def test_pages_follow_each_other_and_end(page):
    first = ids(page)
    expect(page.locator("#previous-page")).to_be_disabled()
    page.locator("#next-page").click()
    expect(page.locator("#page-of")).to_have_text("page 2 of 3")
    assert not set(ids(page)) & set(first)
    page.locator("#next-page").click()
    expect(page.locator("#next-page")).to_be_disabled()
    expect(page.locator(ROWS)).to_have_count(30)


# ---- keyboard ---------------------------------------------------------------------------------------


def focused(page):
    return page.evaluate("document.activeElement.querySelector?.('.case-id')?.textContent")


def test_keys_walk_over_the_ends_of_a_page_open_a_post_and_search(page):
    names = ids(page)
    page.keyboard.press("j")
    assert focused(page) == names[0]
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    assert focused(page) == names[1]
    page.locator(ROWS).last.focus()
    page.keyboard.press("j")
    expect(page.locator("#page-of")).to_have_text("page 2 of 3")
    assert focused(page) == ids(page)[0]
    row = page.locator(ROWS).first
    assert (row.get_attribute("aria-rowindex"), row.get_attribute("tabindex")) == ("52", "0")
    page.keyboard.press("o")
    expect(row.locator(".unfold")).to_have_attribute("aria-expanded", "true")
    expect(row.locator(".probs")).to_have_count(1)  # the one question of three answers
    page.keyboard.press("Enter")
    expect(row.locator(".unfold")).to_have_text("More")
    page.keyboard.press("p")
    expect(page.locator("#page-of")).to_have_text("page 1 of 3")
    page.keyboard.press("/")
    expect(page.locator("#f-search")).to_be_focused()
    page.keyboard.type("jk")  # letters now, not keys
    expect(page.locator("#f-search")).to_have_value("jk")
    page.locator("#f-search").fill("")
    expect(page.locator("#count")).to_have_text("130 of 130 posts")
    page.locator("#keys").uncheck()
    page.locator("body").press("n")
    expect(page.locator("#page-of")).to_have_text("page 1 of 3")


def test_what_is_opened_shows_every_answer_with_its_probability(open_page, four):
    record = worst_first([json.loads(line) for line in (four / "validation.jsonl").read_text().splitlines()])[
        0
    ]
    page = open_page(four / "report.html")
    page.locator(".unfold").first.click()
    told = page.locator(".probs").first.inner_text().split()
    assert told == [part for name in FOUR.names for part in (name, f"{record['probabilities'][name]:.3f}")]


# ---- pictures ---------------------------------------------------------------------------------------


def test_pictures_are_blurred_until_asked_for(page):
    page.locator("#f-search").fill("post-00009")  # five pictures: three at first
    expect(page.locator("#count")).to_have_text("1 of 130 posts")
    pictures = page.locator("#case-rows button.picture")
    expect(pictures).to_have_count(3)
    expect(page.locator("#case-rows .pictures")).to_contain_text("3 of 5")
    assert "blur" in pictures.first.locator("img").evaluate("(one) => getComputedStyle(one).filter")
    pictures.first.click()
    assert pictures.first.get_attribute("aria-pressed") == "true"
    assert pictures.first.locator("img").evaluate("(one) => getComputedStyle(one).filter") == "none"
    page.locator("#pictures").check()
    page.locator(".unfold").click()
    assert page.locator("#case-rows .picture:not(.shown)").count() == 0


# ---- what comes from outside ------------------------------------------------------------------------


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_hostile_and_endless_strings_are_text_wherever_they_stand(open_page, tmp_path, viewport):
    bad = f"x\"'{MARKUP}</option></select>{CONTROLS}{'endless' * 40}"
    task = Task(
        name=bad, positive=f"a{bad}", policy=bad,
        classes=(TaskClass(f"a{bad}", bad), TaskClass(f"b{bad}", bad)),
        questions=(Question(f"q{bad}", bad, (f"y{bad}", f"n{bad}", f"m{bad}")),),
    )  # fmt: skip
    answers = task.questions[0].answers
    posts = [
        Post(f"{n}{bad}", bad, (), task.names[n % 2], {task.questions[0].name: answers[n % 3]})
        for n in range(12)
    ]
    made(tmp_path / "model", task, posts, epochs=2, steps=4, unread=(posts[-1].id,))
    write_report(tmp_path / "model", tmp_path / "report.html")
    page = open_page(tmp_path / "report.html", viewport=viewport)
    for control in ("f-outcome", "f-truth", "f-said", "f-question", "f-sort"):
        for option in page.locator(f"#{control} option").all():
            page.locator(f"#{control}").select_option(option.get_attribute("value"))
        page.locator("#clear").evaluate("(one) => one.click()")
    page.locator("#f-search").fill("</script>")
    expect(page.locator("#count")).to_have_text("11 of 11 posts")
    page.locator(".unfold").first.click()
    assert "owned" not in page.title()
    text = page.locator("body").inner_text()
    assert "<script>document.title='owned'</script>" in text
    assert not set(text) & set("\u202e\u2066\u2028\x1b\x07")
    assert page.evaluate("document.querySelectorAll('[onerror],[onload],[onclick],iframe,img').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]


# ---- everybody --------------------------------------------------------------------------------------


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["few", "few_four"])
def test_axe_finds_no_serious_fault(open_page, request, name, scheme, viewport):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    file = request.getfixturevalue(name) / "report.html"
    page = open_page(file, color_scheme=scheme, viewport=viewport)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    page.locator(".unfold").first.click()
    faults = axe.run(page).response["violations"]
    told = [
        (one["id"], one["nodes"][0]["html"]) for one in faults if one["impact"] in ("serious", "critical")
    ]
    assert told == []


def test_a_phone_shows_it_as_cards_without_scrolling_sideways(open_page, model):
    page = open_page(model / "report.html", viewport=PHONE)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.locator("#case-frame").evaluate("(one) => one.scrollWidth <= one.clientWidth")
    assert page.locator(".measured").evaluate("(one) => one.offsetWidth <= one.parentElement.clientWidth")
    # a card names what its figures are of, since its heading is not to be seen
    expect(page.locator(f"{ROWS} td.score .cell-name").first).to_be_visible()
    sizes = page.locator("svg.chart:visible").evaluate_all(
        "all => all.map((one) => 11 * one.getBoundingClientRect().width / one.viewBox.baseVal.width)"
    )
    assert sizes
    assert min(sizes) > 9  # pixels of a chart's letters

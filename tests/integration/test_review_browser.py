"""The review page in a real Chromium, served by a real process: by keys, mouse and touch, and attacked."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import pytest
from browser_helpers import listening
from report_helpers import HOSTILE
from review_helpers import Server, labelling_of, review_of

from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER, UNSURE

pytestmark = pytest.mark.integration

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs the development tools: pip install .[dev]"
)
expect = sync_api.expect

DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 360, "height": 740}
OFFLINE = "net::ERR_INTERNET_DISCONNECTED"


@pytest.fixture
def serve(tmp_path):
    """Serves a review of a run made by `review_of`; at the end the process ends in good order."""
    servers = []

    def serve_(*options, posts=12, lease=None, **made):
        folder = review_of(tmp_path / str(len(servers)), posts, **made)
        if lease is not None:
            with closing(sqlite3.connect(folder.path / LEDGER, isolation_level=None)) as connection:
                connection.execute("UPDATE settings SET value = ? WHERE name = 'lease_seconds'", (lease,))
        servers.append(Server(folder, *options))
        servers[-1].ledger = ReviewLedger(folder.path / LEDGER)
        return servers[-1]

    yield serve_
    for one in servers:
        one.ledger.close()
        if one.process.returncode is None:
            assert one.end() == 0


@pytest.fixture
def visit(browser):
    """Opens a review as somebody; at the end nothing was said, thrown, asked for elsewhere."""
    with listening(browser) as pages:

        def visit_(server, name="ann", **options):
            reviewer = f"&reviewer={name}" if name else ""
            options = {"viewport": DESKTOP, **options}
            page = pages.open(f"{server.origin}/?token={server.token}{reviewer}", **options)
            if name:
                expect(page.locator("#post-number, #end-title").locator("visible=true")).to_be_visible()
            return page

        visit_.noise, visit_.fetched = pages.noise, pages.fetched
        yield visit_
    assert {re.match(r"\w+://[^:/]+", url)[0] for url in pages.fetched} <= {"http://127.0.0.1"}


def shown_id(page):
    return page.locator("#post-id").inner_text()


def labels(server):
    return {one.post_id: one.label for one in server.ledger.decisions()}


# ---- by keys ------------------------------------------------------------------------------------------


def test_keys_answer_skip_and_undo(serve, visit):
    server = serve()
    page = visit(server)
    seen = []
    for key in ("1", "2", "u", "s"):
        seen.append(shown_id(page))
        page.keyboard.press(key)
        expect(page.locator("#post-id")).not_to_have_text(seen[-1])
    assert labels(server) == {seen[0]: "positive", seen[1]: "negative", seen[2]: None}
    assert server.ledger.decisions()[-1].reviews[0].label == UNSURE
    expect(page.locator("#count")).to_contain_text("3 of 12")
    page.keyboard.press("z")
    expect(page.locator("#post-id")).to_have_text(seen[2])
    page.keyboard.press("z")
    expect(page.locator("#post-id")).to_have_text(seen[1])
    expect(page.locator(".choice.before")).to_have_text("2negative")
    expect(page.locator("#live")).to_contain_text("Undone: you had said negative")
    assert labels(server) == {seen[0]: "positive"}
    page.keyboard.press("1")
    expect(page.locator("#post-id")).not_to_have_text(seen[1])
    assert labels(server) == {seen[0]: "positive", seen[1]: "positive"}


def test_a_labelling_of_three_classes_has_three_answers(tmp_path, visit):
    server = Server(labelling_of(tmp_path, ("rude", "kind", "odd")))
    page = visit(server)
    assert page.locator(".choice").all_inner_texts() == ["1\nrude", "2\nkind", "3\nodd"]
    seen = [shown_id(page)]
    page.keyboard.press("3")
    expect(page.locator("#post-id")).not_to_have_text(seen[0])
    expect(page.locator("#previous-marks")).to_contain_text("annotator ✗ rude")
    expect(page.locator("#previous-marks")).to_contain_text("criticizer rude: 40% likely wrong")
    seen.append(shown_id(page))
    page.locator(".choice").nth(1).click()
    expect(page.locator("#end-title")).to_be_visible()
    expect(page.locator("#end-command")).to_have_text(
        re.compile("selftrain act export .* --out labelled.jsonl")
    )
    ledger = ReviewLedger(tmp_path / "labels" / LEDGER)
    assert {one.post_id: one.label for one in ledger.decisions()} == dict(
        zip(seen, ("odd", "kind"), strict=True)
    )
    ledger.close()
    assert server.end() == 0


def test_a_held_key_answers_one_post(serve, visit):
    server = serve()
    page = visit(server)
    first = shown_id(page)
    for _ in range(6):
        page.keyboard.down("1")
    page.keyboard.up("1")
    expect(page.locator("#post-id")).not_to_have_text(first)
    page.wait_for_timeout(300)
    assert list(labels(server)) == [first]


def test_the_whole_review_by_keyboard_alone(serve, visit):
    server = serve(posts=3)
    page = visit(server, "")
    page.keyboard.type("ann")
    page.keyboard.press("Enter")
    expect(page.locator("#work")).to_be_visible()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("1")  # help is open: no answer
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    assert labels(server) == {}
    for number in range(3):
        page.get_by_role("button", name="positive").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#count")).to_contain_text(f"{number + 1} of 3")
    expect(page.locator("#end-title")).to_have_text("The budget is spent")
    expect(page.locator("#end-estimates")).to_contain_text("of 3 posts, 95 % interval", timeout=60_000)
    expect(page.locator("#end-command")).to_have_text(re.compile(r"selftrain run \S+/recipe\.toml --out "))
    page.keyboard.press("z")
    expect(page.locator("#work")).to_be_visible()
    assert len(labels(server)) == 2


@pytest.mark.parametrize("key", ["u", "U", "\N{CYRILLIC SMALL LETTER GHE}"])
def test_letters_are_keys_under_caps_lock_and_on_keyboards_without_latin_ones(serve, visit, key):
    server = serve()
    page = visit(server)
    first = shown_id(page)
    pressed = "new KeyboardEvent('keydown', {key, code: 'KeyU', bubbles: true})"
    page.evaluate(f"key => document.body.dispatchEvent({pressed})", key)
    expect(page.locator("#post-id")).not_to_have_text(first)
    assert labels(server) == {first: None}


def test_keys_can_be_turned_off_and_fields_take_them(serve, visit):
    server = serve()
    page = visit(server)
    page.locator("#ask-help").click()
    page.locator("#keys").uncheck()
    page.locator("#close-help").click()
    page.keyboard.press("1")
    page.wait_for_timeout(200)
    assert labels(server) == {}


# ---- what is shown, and when ----------------------------------------------------------------------------


def test_what_machines_said_comes_after_the_answer_with_agreement_marked(serve, visit):
    page = visit(serve())
    assert "lantern" not in page.content()
    expect(page.locator("#previous")).to_be_hidden()
    page.keyboard.press("2")
    expect(page.locator("#previous-marks li")).to_have_text(
        ["classifier ✗ positive", "reviewer ✗ positive", "other reviewer ✓ negative"]
    )
    page.keyboard.press("w")
    parties = page.locator("#previous-parties .party")
    expect(parties).to_have_count(3)
    expect(parties.nth(1)).to_contain_text("because of the lantern")
    expect(parties.nth(1)).to_contain_text("changed its mind")
    boxes = [parties.nth(1).locator(".step").nth(k).bounding_box() for k in (0, 1)]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]


def test_opinions_before_the_answer_only_when_asked_for(serve, visit):
    page = visit(serve("--show-opinions"))
    expect(page.locator("#before .party")).to_have_count(3)
    expect(page.locator("#before")).to_contain_text("because of the lantern")


def test_pictures_are_blurred_until_asked_for_at_every_post(serve, visit):
    page = visit(serve(posts=3, pictures={0: 1, 1: 1, 2: 1}))
    image = page.locator("#image")

    def blur():
        return image.evaluate("(one) => getComputedStyle(one).filter")

    image.evaluate("(one) => one.decode()")
    assert image.evaluate("(one) => one.naturalWidth") == 400
    assert "blur" in blur()
    page.keyboard.press("b")
    assert blur() == "none"
    page.keyboard.press("b")
    assert "blur" in blur()
    page.locator("#picture").click()
    assert blur() == "none"
    first = shown_id(page)
    page.keyboard.press("1")
    expect(page.locator("#post-id")).not_to_have_text(first)
    assert "blur" in blur()


def test_an_album_is_turned_by_arrows_and_buttons(serve, visit):
    page = visit(serve(posts=1, pictures={0: 3}))
    place, image = page.locator("#album-place"), page.locator("#image")
    expect(place).to_have_text("1 of 3")
    sources = [image.get_attribute("src")]
    for _ in range(3):  # once more than there are
        page.keyboard.press("ArrowRight")
        sources.append(image.get_attribute("src"))
    expect(place).to_have_text("3 of 3")
    assert len(set(sources)) == 3
    expect(page.locator("#later")).to_be_disabled()
    page.locator("#earlier").click()
    expect(place).to_have_text("2 of 3")
    page.keyboard.press("b")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#picture")).to_have_attribute("aria-pressed", "true")  # b shows all of them


def test_a_picture_that_went_is_said(serve, visit):
    server = serve(posts=1, pictures={0: 2})
    for picture in (server.ledger.path.parents[1]).glob("0-1-*"):
        picture.write_bytes(b"no picture")
    page = visit(server)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#picture-fault")).to_contain_text("0-1-plain.png")
    visit.noise[:] = [one for one in visit.noise if "422" not in one]


def test_the_token_leaves_the_address_and_a_reload_shows_the_same_post(serve, visit):
    server = serve()
    page = visit(server)
    assert page.url == f"{server.origin}/"
    first = shown_id(page)
    page.reload()
    expect(page.locator("#post-id")).to_have_text(first)
    page.keyboard.press("1")
    expect(page.locator("#post-id")).not_to_have_text(first)
    then = shown_id(page)
    page.reload()
    expect(page.locator("#post-id")).to_have_text(then)
    expect(page.locator("#previous-line")).to_contain_text("positive")
    page.keyboard.press("z")
    expect(page.locator("#post-id")).to_have_text(first)


# ---- several people ---------------------------------------------------------------------------------


def test_two_reviewers_at_once_share_the_budget_and_double_what_is_doubled(serve, visit):
    server = serve(posts=6, doubled=0.5)
    pages = [visit(server, name) for name in ("ann", "bob")]
    assert shown_id(pages[0]) != shown_id(pages[1])
    for _ in range(12):
        for page in pages:
            if page.locator("#work").is_visible():
                before = page.locator("#live").inner_text() + shown_id(page)
                page.keyboard.press("1")
                page.wait_for_function(
                    "(before) => document.getElementById('live').textContent"
                    " + document.getElementById('post-id').textContent !== before",
                    arg=before,
                )
        progress = server.ledger.progress()
        if progress.reviewed + progress.second == 9:
            break
        pages[0].wait_for_timeout(300)
    assert (progress.reviewed, progress.second, progress.left) == (6, 3, 0)
    for page in pages:
        expect(page.locator("#end-title")).to_have_text("The budget is spent", timeout=10_000)
        expect(page.locator("#end-stats")).to_contain_text("3 of 3 alike", timeout=10_000)
        expect(page.locator("#end-words")).to_contain_text("Thank you", timeout=10_000)


def test_who_leaves_makes_room(serve, visit):
    server = serve()
    page = visit(server)
    first = shown_id(page)
    page.locator("#who").click()
    expect(page.locator("#name")).to_be_focused()
    assert shown_id(visit(server, "bob")) == first
    page.locator("#name").fill("cem")
    page.keyboard.press("Enter")
    expect(page.locator("#who-name")).to_have_text("cem")
    assert shown_id(page) != first


# ---- when it goes wrong -------------------------------------------------------------------------------


def test_an_answer_that_cannot_be_saved_stays_and_is_saved_later(serve, visit):
    server = serve()
    page = visit(server)
    first = shown_id(page)
    page.context.set_offline(True)
    page.keyboard.press("2")
    expect(page.locator("#fault")).to_contain_text("Not saved: the server cannot be reached")
    expect(page.locator(".choice.chosen")).to_have_text("2negative")
    expect(page.locator("#post-id")).to_have_text(first)
    page.keyboard.press("1")  # one answer at a time
    assert labels(server) == {}
    page.context.set_offline(False)
    expect(page.locator("#post-id")).not_to_have_text(first, timeout=20_000)
    expect(page.locator("#fault")).to_be_hidden()
    assert labels(server) == {first: "negative"}
    visit.noise[:] = [one for one in visit.noise if OFFLINE not in one]


def test_a_server_that_is_killed_and_started_again_takes_the_answer_of_the_open_page(serve, visit):
    server = serve()
    page = visit(server)
    page.keyboard.press("1")
    expect(page.locator("#count")).to_contain_text("1 of 12")
    first = shown_id(page)
    server.kill()
    page.keyboard.press("2")
    expect(page.locator("#fault")).to_contain_text("Not saved")
    again = Server(type("Folder", (), {"path": server.ledger.path.parent}))
    try:
        assert (again.port, again.token) == (server.port, server.token)
        expect(page.locator("#post-id")).not_to_have_text(first, timeout=20_000)
        assert labels(server)[first] == "negative"
        assert len(labels(server)) == 2
    finally:
        assert again.end() == 0
    visit.noise[:] = [one for one in visit.noise if "net::ERR_" not in one]


def test_a_server_that_is_gone_is_said_at_the_door_too(serve, visit):
    server = serve()
    page = visit(server, "")
    page.context.set_offline(True)
    page.locator("#name").fill("ann")
    page.keyboard.press("Enter")
    expect(page.locator("#name-fault")).to_contain_text("Not connected: the server cannot be reached")
    page.context.set_offline(False)
    expect(page.locator("#work")).to_be_visible(timeout=20_000)
    visit.noise[:] = [one for one in visit.noise if OFFLINE not in one]


def test_an_open_page_keeps_its_post_and_one_that_was_away_is_told(serve, visit):
    server = serve(lease=3)
    page = visit(server)
    first = shown_id(page)
    page.wait_for_timeout(5000)
    assert server.ledger.next_post("bob").item.post_id != first
    page.context.set_offline(True)
    page.wait_for_timeout(4500)
    assert server.ledger.next_post("cem").item.post_id == first
    page.context.set_offline(False)
    page.keyboard.press("p")  # a page where nothing happens for two leases holds nothing
    expect(page.locator("#fault")).to_contain_text("went to somebody else meanwhile", timeout=15_000)
    assert shown_id(page) != first
    visit.noise[:] = [one for one in visit.noise if OFFLINE not in one]


def test_a_post_that_was_answered_in_another_window_is_said(serve, visit):
    server = serve()
    pages = [visit(server), visit(server)]
    first = shown_id(pages[0])
    assert shown_id(pages[1]) == first
    pages[0].keyboard.press("1")
    expect(pages[0].locator("#post-id")).not_to_have_text(first)
    pages[1].keyboard.press("2")
    expect(pages[1].locator("#fault")).to_contain_text("undo that first")
    expect(pages[1].locator("#post-id")).not_to_have_text(first)
    assert labels(server) == {first: "positive"}
    visit.noise[:] = [one for one in visit.noise if "409" not in one]


def test_without_the_token_nothing_is_shown(serve, browser):
    server = serve()
    page = browser.new_page()
    assert page.goto(f"{server.origin}/").status == 403
    expect(page.locator("body")).to_contain_text("open the URL that `selftrain review serve` printed")
    page.close()


# ---- attacked -----------------------------------------------------------------------------------------


def test_hostile_posts_are_shown_as_they_are(serve, visit):
    server = serve(posts=3, said=HOSTILE, pictures={0: 1, 1: 1, 2: 1})
    page = visit(server, "<b>ann</b>")
    expect(page).to_have_title("Review of run - selftrain")
    expect(page.locator("#text")).to_contain_text("<img src=x onerror=")
    expect(page.locator("#text")).to_contain_text("\\x1b[31m")
    expect(page.locator("#policy")).to_contain_text("</script>")
    page.keyboard.press("2")
    expect(page.locator("#previous-marks")).to_contain_text("<b onclick=")
    page.keyboard.press("w")
    expect(page.locator("#previous-parties")).to_contain_text("<svg onload=alert(1)>")
    assert page.locator("main svg, main b:not(#count b), main script, main a").count() == 0
    expect(page).to_have_title("Review of run - selftrain")
    assert page.evaluate("document.documentElement.scrollWidth") == DESKTOP["width"]


def test_a_script_that_got_in_would_not_run(serve, visit):
    page = visit(serve())
    with pytest.raises(sync_api.Error, match="TrustedScript"):
        page.evaluate("document.body.setAttribute('onclick', 'document.title=1')")
    page.evaluate(
        "(url) => { const one = document.createElement('img'); one.src = url; document.body.append(one); }",
        "http://127.0.0.2:9/x.png",
    )
    page.wait_for_timeout(300)
    expect(page).to_have_title("Review of run - selftrain")
    assert len(visit.noise) == 2
    assert "TrustedScript" in visit.noise[0]
    assert "Content Security Policy" in visit.noise[1]
    visit.noise.clear()
    visit.fetched.remove("http://127.0.0.2:9/x.png")


# ---- everybody ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(serve, visit, scheme, viewport):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    server = serve(posts=2, doubled=0.5, pictures={0: 2, 1: 2})

    def faults(page):
        page.wait_for_timeout(300)  # a transition is no contrast
        found = axe.run(page).response["violations"]
        return [
            (one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")
        ]

    page = visit(server, "", color_scheme=scheme, viewport=viewport)
    assert faults(page) == []
    page.locator("#name").fill("ann")
    page.keyboard.press("Enter")
    expect(page.locator("#work")).to_be_visible()
    page.keyboard.press("2")
    expect(page.locator("#previous")).to_be_visible()
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert faults(page) == []
    page.keyboard.press("?")
    assert faults(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("u")
    expect(page.locator("#end")).to_be_visible()
    assert faults(page) == []


def test_a_phone_shows_it_without_scrolling_sideways_and_by_touch(serve, visit):
    server = serve(posts=2, pictures={0: 2, 1: 2})
    page = visit(server, viewport=PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    for name in ("positive", "negative", "Unsure", "Skip", "Undo"):
        box = page.get_by_role("button", name=re.compile(name)).bounding_box()
        assert min(box["width"], box["height"]) >= 44
        assert box["y"] + box["height"] <= PHONE["height"]  # without scrolling
    first = shown_id(page)
    page.locator("#picture").tap()
    expect(page.locator("#picture")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="positive").tap()
    expect(page.locator("#post-id")).not_to_have_text(first)
    page.get_by_role("button", name="negative").tap()
    expect(page.locator("#end")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert labels(server)[first] == "positive"


def test_dark_and_light_are_two_themes(serve, visit):
    server = serve()
    grounds = [
        visit(server, color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    light, dark = (sum(map(int, re.findall(r"\d+", ground)[:3])) for ground in grounds)
    assert light > 700
    assert dark < 100

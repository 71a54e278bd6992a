"""The review's HTTP side: who is let in, what a page may ask, what an answer does, what is never told."""

from __future__ import annotations

import io
import json
import re
import sqlite3
import threading

import pytest
from page_helpers import ParsedPage
from PIL import Image
from report_helpers import HOSTILE
from review_helpers import WORDS, Clock, review_of, run_of
from starlette.testclient import TestClient

from selftrain.errors import LedgerError
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER, UNSURE, Review
from selftrain.review.page.review_app import build_app
from selftrain.review.page.review_server import render_review
from selftrain.review.page.session import Material, ReviewSession, seconds_a_post
from selftrain.review.sampling import request_reviews

TOKEN = "t" * 43
BASE = "http://127.0.0.1:8000"


class Site:
    """The application of a run, and the clock of its ledger."""

    def __init__(self, folder, *, show_opinions=False, hosts=()):
        self.clock = Clock()
        self.folder = folder
        self.ledger = ReviewLedger(folder.path / LEDGER, clock=self.clock)
        self.desk = ReviewSession(
            self.ledger, Material(folder), show_opinions=show_opinions, refresh_seconds=0, clock=lambda: 0.0
        )
        page = render_review(folder, self.desk)
        self.app = build_app(self.desk, page, token=TOKEN, hosts=hosts)

    def client(self, *, welcome=True):
        client = TestClient(self.app, base_url=BASE, raise_server_exceptions=False)
        if welcome:
            assert client.get(f"/?token={TOKEN}").status_code == 200
        return client

    def reviewer(self, name):
        return Reviewer(self.client(), name)


class Reviewer:
    """What a reviewer's page does."""

    def __init__(self, client, name):
        self.client, self.name = client, name

    def ask(self, what, status=200, **fields):
        answer = self.client.post(
            f"/api/{what}", json={"reviewer": self.name, **fields}, headers={"Origin": BASE}
        )
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self):
        return self.ask("next")["post"]

    def decide(self, label, post=None, status=200):
        return self.ask("decide", status, post=post or self.post()["id"], label=label)


@pytest.fixture
def site(tmp_path):
    return Site(review_of(tmp_path, pictures={0: 1, 1: 3}))


@pytest.fixture
def ann(site):
    return site.reviewer("ann")


# ---------------------------------------------------------------- who is let in


def test_nothing_is_shown_without_the_token(site):
    stranger = site.client(welcome=False)
    for path in ("/", "/picture/0/0", "/api/next", "/nowhere", "/?token=", "/?token=" + "u" * 43):
        answer = stranger.get(path)
        assert (answer.status_code, "token" in answer.text) == (403, True)
        assert "set-cookie" not in answer.headers
    posted = stranger.post("/api/next", json={"reviewer": "ann"}, headers={"Origin": BASE})
    assert posted.status_code == 403
    assert site.ledger.progress().held == 0


def test_the_token_becomes_a_cookie_that_no_script_reads_and_no_other_site_sends(site):
    client = site.client(welcome=False)
    answer = client.get(f"/?token={TOKEN}")
    cookie, browser = answer.headers.get_list("set-cookie")
    assert cookie.endswith(f"={TOKEN}; Path=/; HttpOnly; SameSite=Strict")
    assert "; Path=/; HttpOnly; SameSite=Strict" in browser
    assert TOKEN not in browser
    assert client.get("/").status_code == 200
    name = cookie.partition("=")[0]
    other = site.client(welcome=False)
    assert other.get("/", headers={"Cookie": f"{name}={'u' * 43}"}).status_code == 403
    assert other.get("/", headers={"Cookie": f"{name}=\xff".encode("latin-1")}).status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost:9000", 200), ("[::1]:8000", 200), ("192.168.1.5:8000", 200),
        ("review.example:8000", 200), ("evil.example:8000", 400), ("127.0.0.1.evil.example", 400),
        ("localhost.evil.example", 400), ("", 400), ("[::1", 400),
    ],
)  # fmt: skip
def test_a_name_that_is_not_ours_is_refused(tmp_path, host, status):
    client = Site(review_of(tmp_path, 2), hosts=("review.example",)).client(welcome=False)
    assert client.get(f"/?token={TOKEN}", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:8001"},
        {"Origin": BASE, "Content-Type": "text/plain"},
        {"Origin": BASE, "Content-Type": "application/x-www-form-urlencoded"},
        {"Origin": BASE, "Sec-Fetch-Site": "cross-site"}, {"Origin": BASE, "Sec-Fetch-Site": "same-site"},
    ],
)  # fmt: skip
def test_another_page_in_the_same_browser_changes_nothing(site, headers):
    body = json.dumps({"reviewer": "ann"})
    client = site.client()
    answer = client.post("/api/next", content=body, headers={"Content-Type": "application/json"} | headers)
    assert answer.status_code == 403
    assert site.ledger.progress().held == 0


def test_every_answer_says_that_it_is_nobody_elses(site):
    client = site.client()
    for path in ("/", "/picture/0/0", "/nowhere"):
        headers = client.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_the_policy_of_the_page_allows_this_script_and_this_style_and_its_own_server(site):
    answer = site.client().get("/")
    rules = ParsedPage(answer.text).rules_of(answer.headers["content-security-policy"])
    assert rules["connect-src"] == rules["img-src"] == "'self'"
    assert rules["frame-ancestors"] == "'none'"


def test_get_changes_nothing(site):
    assert site.client().get("/api/next").status_code == 405


# ---------------------------------------------------------------- answers


def test_an_answer_is_in_the_file_before_the_next_post_is_told(site, ann):
    first = ann.post()
    told = ann.decide("positive", first["id"])
    other = ReviewLedger(site.folder.path / LEDGER)  # as another process sees the file
    assert [(d.post_id, d.label) for d in other.decisions()] == [(first["id"], "positive")]
    assert told["post"]["id"] != first["id"]
    assert told["progress"]["reviewed"] == 1
    assert told["progress"]["budget"] == 12


def test_a_repeated_answer_is_one_answer(site, ann):
    first = ann.post()
    told = [ann.decide("negative", first["id"]) for _ in range(3)]
    assert told[0] == told[1] == told[2]
    assert site.ledger.progress().reviewed == 1
    assert "undo" in ann.decide("positive", first["id"], status=409)["error"]
    assert [d.label for d in site.ledger.decisions()] == ["negative"]


@pytest.mark.parametrize("label", ["", "maybe", "Positive", "positive ", None, 1, ["positive"], "\ud800"])
def test_a_class_that_is_none_is_refused(site, ann, label):
    post = ann.post()
    answer = ann.client.post(
        "/api/decide", content=json.dumps({"reviewer": "ann", "post": post["id"], "label": label}),
        headers={"Origin": BASE, "Content-Type": "application/json"},
    )  # fmt: skip
    assert answer.status_code in (409, 422)
    assert site.ledger.progress().reviewed == 0


@pytest.mark.parametrize("post", ["", "nobody", "../p00", "p00' OR 1=1 --", "p\x00", "x" * 5000])
@pytest.mark.parametrize("what", ["decide", "undo"])
def test_a_post_that_is_not_ones_own_is_refused(site, ann, what, post):
    fields = {"label": "positive"} if what == "decide" else {}
    ann.ask(what, 409, post=post, **fields)
    assert site.ledger.progress().reviewed == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"no", b"[]", b"{}", b'{"reviewer": 1}', b'{"reviewer": "  "}', b'{"reviewer": "a\\u202e"}',
     b'{"reviewer": "a\\u0000"}', b'{"reviewer": "' + b"a" * 61 + b'"}', b'"' + b"a" * 30_000 + b'"',
     b"[" * 19_000, b'{"reviewer": "\\ud800"}', b"\xff"],
)  # fmt: skip
def test_what_is_no_request_is_refused_in_words(site, body):
    headers = {"Origin": BASE, "Content-Type": "application/json"}
    answer = site.client().post("/api/next", content=body, headers=headers)
    assert answer.status_code == (413 if len(body) > 20_000 else 422)
    assert answer.json()["error"]
    assert site.ledger.progress().held == 0


def test_a_name_is_one_name_however_it_is_spaced(site):
    first = site.reviewer("  Ann \t Lee ").post()
    assert site.reviewer("Ann Lee").post() == first
    assert site.ledger.progress().held == 1


def test_unsure_spends_the_budget_and_skip_does_not(site, ann):
    first = ann.post()
    told = ann.decide(UNSURE, first["id"])
    assert (told["progress"]["reviewed"], told["progress"]["unsure"]) == (1, 1)
    skipped = told["post"]["id"]
    told = ann.ask("skip", post=skipped)
    assert (told["progress"]["reviewed"], told["progress"]["left"]) == (1, 11)
    assert told["post"]["id"] != skipped
    assert ann.ask("skip", post=skipped)["post"] == told["post"]  # the same request again
    assert site.reviewer("bob").post()["id"] == skipped


# ---------------------------------------------------------------- undo


def test_undo_gives_the_post_back_step_by_step(site, ann):
    first, second = ann.post()["id"], ann.decide("positive")["post"]["id"]
    ann.decide("negative", second)
    told = ann.ask("undo", post=second)
    assert (told["post"]["id"], told["last"]["id"], told["last"]["label"]) == (second, first, "positive")
    told = ann.ask("undo", post=first)
    assert (told["post"]["id"], told["last"]) == (first, None)
    assert site.ledger.progress().reviewed == 0


def test_a_repeated_undo_takes_one_answer_back(site, ann):
    first, second = ann.post()["id"], ann.decide("positive")["post"]["id"]
    ann.decide("negative", second)
    for _ in range(3):  # the answer to it was lost
        assert ann.ask("undo", post=second)["post"]["id"] == second
    assert [d.post_id for d in site.ledger.decisions()] == [first]


def test_only_the_latest_answer_of_the_same_reviewer_can_be_undone(site, ann):
    first, second = ann.post()["id"], ann.decide("positive")["post"]["id"]
    ann.decide("negative", second)
    assert "latest" in ann.ask("undo", 409, post=first)["error"]
    bob = site.reviewer("bob")
    bob.ask("undo", 409, post=second)
    assert {d.post_id for d in site.ledger.decisions()} == {first, second}


def test_a_page_that_opens_again_knows_the_latest_answer(site, ann):
    first = ann.post()["id"]
    then = ann.decide("positive", first)["post"]
    told = site.reviewer("ann").ask("begin")
    assert told["post"] == then
    assert (told["last"]["id"], told["last"]["label"]) == (first, "positive")
    assert site.reviewer("bob").ask("begin")["last"] is None


# ---------------------------------------------------------------- several reviewers


def test_no_two_hold_one_post_and_together_they_see_each_once(tmp_path):
    site = Site(review_of(tmp_path, 30))
    names = [f"r{i}" for i in range(6)]
    seen, problems = [], []

    def work(name):
        try:
            reviewer = site.reviewer(name)
            while (post := reviewer.post()) is not None:
                seen.append(post["id"])
                reviewer.decide("positive", post["id"])
        except AssertionError as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert problems == []
    assert sorted(seen) == [f"p{i:02d}" for i in range(30)]
    assert site.ledger.progress().left == 0


def test_doubled_posts_come_to_somebody_else_and_kappa_is_told(tmp_path):
    site = Site(review_of(tmp_path, 8, doubled=0.5))
    ann, bob = site.reviewer("ann"), site.reviewer("bob")
    for number in range(8):
        ann.decide(["positive", "negative"][number % 2])
    told = ann.ask("next")
    assert told["post"] is None
    assert (told["end"]["finished"], told["end"]["second_open"]) == (True, 4)
    mine = {d.post_id: d.label for d in site.ledger.decisions()}
    seen = []
    while (post := bob.post()) is not None:
        seen.append(post["id"])
        bob.decide(mine[post["id"]], post["id"])
    assert len(seen) == len(set(seen)) == 4
    told = bob.ask("next")
    assert told["end"]["second_open"] == 0
    assert (told["progress"]["reviewed"], told["progress"]["second"]) == (8, 4)
    agreement = told["stats"]["agreement"]
    assert (agreement["posts"], agreement["agreed"]) == (4, 4)
    both = len({mine[one] for one in seen}) == 2
    assert agreement["kappa"] == (1.0 if both else None)


def test_a_lease_that_ran_out_is_noticed_and_the_answer_is_not_taken(site, ann):
    bob = site.reviewer("bob")
    first = ann.post()["id"]
    assert ann.ask("hold", post=first) == {"held": True}
    site.clock.now += site.ledger.lease_seconds + 1
    assert bob.post()["id"] == first
    assert ann.ask("hold", post=first) == {"held": False}
    assert "lease ran out" in ann.decide("positive", first, status=409)["error"]
    assert bob.ask("hold", post=first) == {"held": True}
    assert site.ledger.progress().reviewed == 0


def test_holding_renews_the_lease(site, ann):
    bob = site.reviewer("bob")
    first = ann.post()["id"]
    for _ in range(4):
        site.clock.now += site.ledger.lease_seconds * 0.7
        assert ann.ask("hold", post=first) == {"held": True}
        assert bob.post()["id"] != first


def test_who_leaves_gives_the_post_to_the_next(site, ann):
    first = ann.post()["id"]
    ann.ask("leave")
    assert site.reviewer("bob").post()["id"] == first


# ---------------------------------------------------------------- what is told when


def test_what_machines_said_is_told_once_the_post_is_answered(site, ann):
    told = ann.ask("next")
    assert told["post"]["opinions"] is None
    assert "lantern" not in json.dumps(told)
    assert "lantern" not in ann.client.get("/").text
    answered = ann.decide("positive")["answered"]
    said = {one["who"]: one["steps"] for one in answered["opinions"]}
    assert list(said) == ["classifier", "reviewer", "other reviewer"]
    assert said["classifier"] == [{"state": "label", "label": "positive", "probability": 0.875, "words": ""}]
    assert [step["label"] for step in said["reviewer"]] == ["negative", "positive"]
    assert [step["state"] for step in said["other reviewer"]] == ["abstain", "label"]
    assert said["reviewer"][0]["words"] == WORDS["rationale"]


def test_opinions_may_be_shown_before(tmp_path):
    site = Site(review_of(tmp_path, 3), show_opinions=True)
    assert [one["who"] for one in site.reviewer("ann").post()["opinions"]] == [
        "classifier", "reviewer", "other reviewer",
    ]  # fmt: skip


def test_nothing_tells_a_first_review_from_a_second(tmp_path):
    site = Site(review_of(tmp_path, 4, doubled=1.0))
    ann, bob = site.reviewer("ann"), site.reviewer("bob")
    first = ann.post()
    ann.decide("positive", first["id"])
    assert bob.post() == first


def test_the_end_tells_the_label_error_with_its_interval(tmp_path):
    site = Site(review_of(tmp_path, 40, budget=20))
    ann = site.reviewer("ann")
    for number in range(20):
        told = ann.decide("negative" if number < 5 else "positive")
    assert told["end"]["finished"]
    (one,) = ann.ask("estimates")["estimates"]
    errors = one["errors"]["all"]
    assert (errors["posts"], errors["reviewed"], errors["wrong"]) == (40, 20, 5)
    assert errors["value"] == pytest.approx(0.25, abs=1e-6)  # all estimates and chances are alike
    assert errors["low"] < 0.25 < errors["high"]


def test_a_sample_without_an_estimate_says_why(tmp_path):
    folder = run_of(tmp_path, 6)
    request_reviews(folder, budget=3, batch="divergent", rule="threshold")
    ann = Site(folder).reviewer("ann")
    for _ in range(3):
        ann.decide("positive")
    (one,) = ann.ask("estimates")["estimates"]
    assert one["errors"] is None
    assert one["why"]


def test_posts_that_enter_later_are_shown_too(site, tmp_path):
    ann = site.reviewer("ann")
    for _ in range(12):
        ann.decide("positive")
    assert ann.post() is None
    folder = run_of(tmp_path / "more", 3, ids=["n0", "n1", "n2"], pictures={0: 1, 1: 1, 2: 1})
    manifest = site.folder.path.parent / "manifest.jsonl"
    for image in folder.path.parent.glob("*.png"):
        image.rename(manifest.parent / image.name)
    manifest.write_text(manifest.read_text() + (folder.path.parent / "manifest.jsonl").read_text())
    path = site.folder.open_round(2)
    (path / "verdicts.jsonl").write_text((folder.path / "rounds/0001/verdicts.jsonl").read_text())
    site.folder.close_round(
        2, json.loads((folder.path / "rounds/0001/metrics.json").read_text()) | {"round": 2}
    )
    site.ledger.allow("more", 3)
    request_reviews(site.folder, budget=12, sample=3, batch="later")
    post = ann.post()
    assert post["id"] in {"n0", "n1", "n2"}
    assert post["text"].startswith("plain number")
    assert ann.client.get(f"/picture/{post['place']}/0").status_code == 200
    assert ann.decide("positive", post["id"])["answered"]["opinions"]


def test_the_median_pace_leaves_breaks_out():
    def reviews(who, times):
        return [Review(f"{who}{i}", 0, who, "x", at) for i, at in enumerate(times)]

    several = [*reviews("ann", [0, 4, 9, 5000, 5006]), *reviews("bob", [100, 107])]
    assert seconds_a_post(several, 900) == 5.5  # 4, 5, 6 and 7
    assert seconds_a_post(reviews("ann", [3]), 900) is None


# ---------------------------------------------------------------- posts and pictures


def place_of(site, post_id):
    return next(place for place in range(12) if site.desk.post_at(place) == post_id)


def test_pictures_are_those_of_the_post(site):
    client = site.client()
    place = place_of(site, "p01")
    colours = []
    for index in range(3):
        answer = client.get(f"/picture/{place}/{index}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
        image = Image.open(io.BytesIO(answer.content)).convert("RGB")
        assert image.size == (400, 300)
        colours.append(max(range(3), key=image.getpixel((9, 9)).__getitem__))
    assert colours == [0, 1, 2]


def test_large_pictures_are_shrunk(site):
    Image.new("RGB", (4000, 1000), "red").save(site.folder.path.parent / "0-0-plain.png")
    answer = site.client().get(f"/picture/{place_of(site, 'p00')}/0")
    assert Image.open(io.BytesIO(answer.content)).size == (1600, 400)


@pytest.mark.parametrize("path", ["0/99", "99/0", "-1/0", "0/-1", "x/0", "0/..%2f..%2fmanifest.jsonl", "0/"])
def test_a_picture_that_is_none_is_not_found(site, path):
    assert site.client().get(f"/picture/{path}").status_code == 404


def test_a_damaged_picture_is_told_without_its_folder(site):
    place = place_of(site, "p00")
    client = site.client()
    client.get(f"/picture/{place}/0")
    (site.folder.path.parent / "0-0-plain.png").write_bytes(b"no picture")
    answer = client.get(f"/picture/{place}/0")
    assert answer.status_code == 422
    assert "0-0-plain.png" in answer.json()["error"]
    assert str(site.folder.path.parent) not in answer.text


def test_a_manifest_that_went_is_said(tmp_path):
    folder = review_of(tmp_path, 3)
    (tmp_path / "manifest.jsonl").unlink()
    post = Site(folder).reviewer("ann").post()
    assert (post["text"], post["images"]) == (None, [])


def test_hostile_words_stay_data(tmp_path):
    folder = review_of(tmp_path, 3, said=HOSTILE, pictures={0: 1, 1: 1, 2: 1})
    site = Site(folder)
    html = site.client().get("/").text
    assert html.count("<script") == 2
    assert "onerror" not in re.sub(r"&lt;.*?&gt;|\\u003c.*?\\u003e", "", html, flags=re.S)
    told = site.reviewer("ann").decide(HOSTILE["negative"])
    for shown in (told["post"]["text"], told["answered"]["opinions"][1]["steps"][0]["words"]):
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "\\x1b" in shown


# ---------------------------------------------------------------- a file that cannot be written


def test_a_ledger_that_cannot_be_written_keeps_nothing_and_says_try_again(site, ann, monkeypatch):
    post = ann.post()["id"]

    def full(*_, **__):
        raise LedgerError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(site.ledger, "decide", full)
        assert ann.decide("positive", post, status=503) == {"error": "the disk is full"}
    assert ann.decide("positive", post)["progress"]["reviewed"] == 1


def test_a_fault_of_our_own_is_told_without_its_details(site, ann, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(site.ledger, "progress", broken)
    told = ann.ask("next", 500)
    assert "secret" not in told["error"]
    assert "ZeroDivisionError" in told["error"]
    assert "secret" in caplog.text


def test_the_log_tells_who_did_what(site, ann):
    first = ann.post()["id"]
    ann.decide("positive", first)
    ann.ask("undo", post=first)
    log = sqlite3.connect(site.folder.path / LEDGER).execute("SELECT action, reviewer, post_id FROM log")
    assert list(log) == [("decide", "ann", first), ("undo", "ann", first)]

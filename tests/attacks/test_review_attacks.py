"""`selftrain review serve` under attack: by those without its token, and by those who have it."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
from attack_helpers import PROBE, WAIT, Attacked, head, received
from review_helpers import review_of

from selftrain.errors import DecisionError
from selftrain.review.exchange.review_import import import_reviews
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER
from selftrain.review.page import review_server
from selftrain.web.http_server import CONNECTIONS

WIRE = pytest.mark.attack("review: connections and bodies")
NAMES = pytest.mark.attack("review: another's name")
TOKEN = pytest.mark.attack("review: its token")
FILES = pytest.mark.attack("review: files that are imported")


class Review(Attacked):
    """A server of reviews; a client of it is a browser with its cookies."""

    def __init__(self, folder):
        super().__init__(["-m", "selftrain", "review", "serve", str(folder), "--no-browser"])
        where = urlsplit(self.first("open "))
        self.token = parse_qs(where.query)["token"][0]
        self.listening(where.port)
        self.origin = f"http://127.0.0.1:{self.port}"

    def serves(self):
        """Who shows the token sees the page."""
        assert self.request("GET", f"/?token={self.token}", timeout=PROBE)[0] == 200

    def browser(self):
        return Browser(self)


class Browser:
    def __init__(self, site):
        self.site, self.cookies = site, {}
        assert self.ask("GET", f"/?token={site.token}")[0] == 200

    def ask(self, method, path, body=None, **more):
        connection = socket.create_connection(("127.0.0.1", self.site.port), timeout=WAIT)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {
            "Host": f"127.0.0.1:{self.site.port}", "Connection": "close",
            "Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items()),
        }  # fmt: skip
        if body is not None:
            headers |= {"Origin": self.site.origin, "Content-Type": "application/json"}
            headers["Content-Length"] = str(len(content))
        lines = [f"{k}: {v}" for k, v in (headers | more).items()]
        with connection:
            connection.sendall(head(f"{method} {path} HTTP/1.1", *lines) + (b"" if body is None else content))
            top, _, answer = received(connection).partition(b"\r\n\r\n")
        for line in top.decode().split("\r\n"):
            name, _, value = line.partition(": ")
            if name.lower() == "set-cookie":
                key, _, kept = value.partition(";")[0].partition("=")
                self.cookies[key] = kept
        return int(top.split(b" ")[1]), answer

    def api(self, what, **fields):
        status, answer = self.ask("POST", f"/api/{what}", fields)
        return status, json.loads(answer)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Review(review_of(tmp_path_factory.mktemp("review"), 40).path)
    yield site
    site.serves()
    site.end()


# ---- connections and bodies ------------------------------------------------------------------------------


@pytest.mark.integration
@WIRE
@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHo"], ids=["silent", "half a header"])
def test_half_open_connections_keep_no_reviewer_out(site, begun):
    open_now = []
    try:
        with site.others_served():
            for _ in range(CONNECTIONS + 300):
                open_now.append(site.connect())
                open_now[-1].sendall(begun)
    finally:
        for one in open_now:
            one.close()


@pytest.mark.integration
@WIRE
@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"reviewer": "ann", "post": "\\ud800"}', 422),
        (b'{"reviewer": "\\udfff", "post": "p00"}', 422),
        (b'{"reviewer": "ann", "post": "p00\\udbff", "label": "\\ud83d"}', 422),
        (b"[" * 19_000, 422),
        (b'{"a":' * 3_000, 422),
        (b'{"reviewer": ' + b"9" * 19_000 + b"}", 422),
        (b'{"reviewer": NaN}', 422),
        (b"\xff\xfe", 422),
        (b" " * 30_000, 413),
    ],
    ids=lambda one: one[:30].decode("latin-1") if isinstance(one, bytes) else "",
)
@pytest.mark.parametrize("what", ["decide", "undo", "skip"])
def test_what_is_no_request_is_the_askers_fault(site, content, status, what):
    found, answer = site.browser().ask("POST", f"/api/{what}", content)
    assert (found, bool(json.loads(answer)["error"])) == (status, True)


@pytest.mark.integration
@WIRE
def test_bodies_without_end_hold_up_nobody(site):
    browser = site.browser()
    cookies = "; ".join(f"{k}={v}" for k, v in browser.cookies.items())
    lines = (
        "POST /api/next HTTP/1.1", f"Host: 127.0.0.1:{site.port}", f"Origin: {site.origin}",
        "Content-Type: application/json", f"Cookie: {cookies}", "Content-Length: 100",
    )  # fmt: skip
    clients = [site.connect() for _ in range(100)]
    try:
        for client in clients:
            client.sendall(head(*lines) + b'{"reviewer"')
        assert browser.api("next", reviewer="ann")[0] == 200
        site.serves()
    finally:
        for client in clients:
            client.close()


# ---- its token -------------------------------------------------------------------------------------------


@pytest.mark.integration
@TOKEN
def test_the_token_is_in_no_command_line(site):
    assert site.token
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            assert site.token not in " ".join(one.cmdline())


@TOKEN
def test_what_a_browser_is_given_to_open_is_a_file_of_the_owner_alone(tmp_path):
    folder, seen = review_of(tmp_path, 2), {}

    def opened(where):
        path = tmp_path / "run" / review_server.DOOR
        seen.update(where=where, mode=path.stat().st_mode & 0o777, page=path.read_text())
        raise KeyboardInterrupt  # it has begun: enough

    said = []
    session = review_server.open_session(folder)
    with suppress(KeyboardInterrupt):
        review_server.serve(
            folder, session, review_server.Opening(reviewer='a"><b'), report=said.append, opened=opened
        )
    session.close()
    url = said[0].removeprefix("open ")
    token = parse_qs(urlsplit(url).query)["token"][0]
    assert seen["where"] == (tmp_path.resolve() / "run" / review_server.DOOR).as_uri()
    assert token not in seen["where"]
    assert seen["mode"] == 0o600
    assert f'content="0; url={url.replace("&", "&amp;")}"' in seen["page"]
    assert not (tmp_path / "run" / review_server.DOOR).exists(), "it leads nowhere any more"


@pytest.mark.integration
@TOKEN
@pytest.mark.parametrize(
    "path", ["/", "/?token=", "/?token=%FF", "/picture/0/0", "/api/next", "/favicon.ico"]
)
def test_without_the_token_nothing_is_answered(site, path):
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"):
        status, answer = site.request(method, path, headers={"Origin": site.origin})
        assert (status, site.token.encode() in answer) == (403, False)


# ---- another's name --------------------------------------------------------------------------------------


def decided(site, reviewer):
    """Two browsers, and the post that a reviewer has decided in the first."""
    ann, mallory = site.browser(), site.browser()
    post = ann.api("begin", reviewer=reviewer)[1]["post"]["id"]
    assert ann.api("decide", reviewer=reviewer, post=post, label="positive")[0] == 200
    return ann, mallory, post


@pytest.mark.integration
@NAMES
def test_nobody_takes_back_anothers_decision_by_claiming_a_name(site):
    ann, mallory, post = decided(site, "victim")
    tried = [
        mallory.api("undo", reviewer="victim", post=post),
        mallory.api("decide", reviewer="victim", post=post, label="negative"),
        # the same decision again is answered, for an answer may be lost; it makes it nobody else's
        mallory.api("decide", reviewer="victim", post=post, label="positive"),
        mallory.api("undo", reviewer="victim", post=post),
        mallory.api("undo", reviewer=" victim ", post=post),
    ]
    assert [status for status, _ in tried] == [409, 409, 200, 409, 409]
    assert "not made in this browser" in tried[0][1]["error"]
    status, told = ann.api("undo", reviewer="victim", post=post)
    assert (status, told["post"]["id"]) == (200, post)


@pytest.mark.integration
@NAMES
def test_a_stolen_cookie_name_with_another_value_is_another_browser(site):
    _, mallory, post = decided(site, "victor")
    for forged in (
        "",
        "x",
        "'" + " OR 1=1 --",
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    ):
        mallory.cookies = {
            key: forged if key.endswith("browser") else value for key, value in mallory.cookies.items()
        }
        assert mallory.api("undo", reviewer="victor", post=post)[0] == 409


@NAMES
def test_an_imported_decision_is_not_taken_back_on_the_page(tmp_path):
    folder = review_of(tmp_path, 3)
    with ReviewLedger(folder.path / LEDGER) as ledger:
        first = next(iter(ledger.all_drawn()))
    (tmp_path / "back.csv").write_text(f"post_id,label,reviewer\n{first},positive,ann\n")
    assert import_reviews(folder, tmp_path / "back.csv").taken == 1
    session = review_server.open_session(folder)
    with pytest.raises(DecisionError, match="not made in this browser"):
        session.undo("ann", first, "b" * 64)
    assert session.ledger.progress().reviewed == 1
    session.close()


# ---- files -----------------------------------------------------------------------------------------------

BAD = [
    None, 1, "x", [], {}, {"data": 1}, {"data": {"post_id": "\ud800"}}, {"data": {"post_id": "nobody"}},
    {"data": {"post_id": None}}, {"data": {"post_id": "p00"}, "annotations": 5},
    {"data": {"post_id": "p00"}, "annotations": "abc"},
    {"data": {"post_id": "p00"}, "annotations": [1]},
    {"data": {"post_id": "p00"}, "annotations": [{"result": 7}]},
    {"data": {"post_id": "p00"}, "annotations": [{"result": [{"from_name": "label", "value": [1]}]}]},
    {"data": {"post_id": "p00"}, "annotations": [{"result": [{"from_name": "label", "value": 3}]}]},
    {"data": {"post_id": "p00", "batch": ["x"]}, "annotations": [{"result": [], "completed_by": []}]},
    {"post_id": "p00", "label": {"choices": 5}}, {"post_id": "p00", "label": "\udfff", "annotator": "ann"},
    {"post_id": "p00", "label": "positive", "annotator": "\ud800"},
    {"post_id": 10**400, "label": "positive", "annotator": 1},
    {"post_id": "p00", "label": "positive", "annotator": {"email": ["x"], "id": {"id": {}}}},
    {"post_id": "p00", "label": "posi\u0000ive", "annotator": 10**400},
]  # fmt: skip


@FILES
@pytest.mark.parametrize("number", range(len(BAD)))
def test_one_bad_item_of_an_import_does_not_refuse_the_rest(number, tmp_path):
    folder = review_of(tmp_path, 6)
    good = [{"post_id": f"p0{n}", "label": "positive", "annotator": "ann"} for n in range(1, 6)]
    file = tmp_path / "back.json"
    file.write_text(json.dumps([*good[:3], BAD[number], *good[3:]]))
    found = import_reviews(folder, file)
    assert found.taken == 5, found
    assert len(found.refused) + found.empty == 1, found
    found = import_reviews(folder, file, all_or_nothing=True)
    assert (found.known, found.nothing) == (5, bool(found.refused))


@FILES
@pytest.mark.parametrize(
    "line",
    ["p00,maybe,ann", "p00,positive,", "nobody,positive,ann", "p00", "p00,positive,ann,x,y,z",
     "\x00,\x00,\x00", "p01,negative,ann", f"{'9' * 400},positive,ann", "=1+1,positive,ann", ",,",
     "p00,posi\ud800tive,ann"],
)  # fmt: skip
def test_one_bad_line_of_a_table_does_not_refuse_the_rest(line, tmp_path):
    folder = review_of(tmp_path, 6)
    rows = [f"p0{n},positive,ann" for n in range(1, 6)]
    text = "\n".join(["post_id,label,reviewer", *rows[:3], line, *rows[3:], ""])
    (tmp_path / "back.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    found = import_reviews(folder, tmp_path / "back.csv")
    assert found.taken == 5, found
    assert len(found.refused) + found.empty == 1, found


@pytest.mark.integration
@WIRE
def test_after_all_of_it_reviews_go_on(site):
    until = time.monotonic() + WAIT
    browser = site.browser()
    told = browser.api("begin", reviewer="zoe")[1]
    while told["post"] and time.monotonic() < until:
        status, told = browser.api("decide", reviewer="zoe", post=told["post"]["id"], label="negative")
        assert status == 200
    assert told["progress"]["reviewed"] >= 30

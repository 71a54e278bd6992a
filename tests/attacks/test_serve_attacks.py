"""`selftrain serve` under attack: others are served meanwhile, memory and log stay small."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import psutil
import pytest
from attack_helpers import KINDS, POST, PROBE, WAIT, bomb, encoded, head, many_scans, picture, received, serve

from selftrain.cli import main
from selftrain.serving.intake import Scratch
from selftrain.web.http_server import CONNECTIONS

BODIES = pytest.mark.attack("serve: bodies")
PICTURES = pytest.mark.attack("serve: pictures")
WIRE = pytest.mark.attack("serve: connections and headers")
PAGES = pytest.mark.attack("serve: foreign pages")
PLACE = pytest.mark.attack("serve: its key and its folder")
pytestmark = pytest.mark.integration

MB = 1_000_000
FAST = {
    "web.http_server.HEADER_SECONDS": 0.5,
    "web.http_server.READ_SECONDS": 0.5,
    "web.access.BODY_SECONDS": 1,
}
POSTS = [{"id": str(n), "text": "0.5"} for n in range(256)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for all attacks that leave it as it was: what one of them broke, the next one notices."""
    server = serve(tmp_path_factory.mktemp("temporary"))
    yield server
    server.end()


@pytest.fixture(scope="module")
def decoding(tmp_path_factory):
    """One that has seen nothing but pictures."""
    server = serve(tmp_path_factory.mktemp("temporary"))
    yield server
    server.end()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    """One that gives slow clients little time."""
    server = serve(tmp_path_factory.mktemp("temporary"), set=FAST)
    yield server
    server.end()


# ---- bodies ----------------------------------------------------------------------------------------------


@BODIES
@pytest.mark.parametrize(
    ("content", "statuses"),
    [
        (b'{"posts": [' + b"{}," * 6 * MB + b"{}]}", {413}),
        (b"[" * 19 * MB, {413}),
        (b'{"a":' * 3 * MB, {413}),
        (b'["",' * 4 * MB, {413}),
        (b'"" ' * 6 * MB, {413}),
        (b'{"id": ' + b"9" * 19 * MB + b"}", {413}),
        (b'{"id": 0.' + b"1" * 19 * MB + b"}", {413}),
        (b'{"id": "' + b"a" * 19 * MB + b'"}', {413}),
        (b'{"id": "' + b"\\u0041" * 3 * MB + b'"}', {413}),
        (b'{"id": "' + b"\\\\" * 9 * MB, {400}),
        (b'{"id": "a", "text": "\xf0\x9f\x98\x80' + b"a" * 19 * MB + b'"}', {413}),
        (b'{"id": "a", "images": ["' + b"A" * 19 * MB + b'"]}', {413}),
        (b" " * 19 * MB, {400}),
        (b"\xff" * 19 * MB, {413}),
        (b'{"' + b"k" * 19 * MB + b'": 1}', {422}),
    ],
    ids=lambda one: one[:12].decode("latin-1").strip() if isinstance(one, bytes) else "",
)
def test_a_large_body_is_refused_while_others_are_served(server, content, statuses):
    with server.others_served(), ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(server.attempt, [content] * 4))
    assert {status for status, _ in answers} <= statuses | {429}
    assert all(answer["error"] for _, answer in answers)
    assert server.grown() < 600 * MB


@BODIES
def test_requests_of_many_long_posts_do_not_hold_up_a_short_one(server):
    large = {"posts": [one | {"text": "word " * 3999} for one in POSTS]}
    with server.others_served(), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(server.score, [large] * 16))
    assert {status for status, _ in answers} <= {200, 429}


@BODIES
def test_a_queue_that_others_fill_is_not_full_to_a_short_request(tmp_path):
    server = serve(tmp_path, queue=256)
    with server.others_served(), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(server.score, [{"posts": POSTS}] * 40))
    assert 200 in {status for status, _ in answers} <= {200, 429}
    server.end()


@BODIES
def test_bodies_that_hang_on_do_not_use_up_the_room_for_others(hasty):
    part = b'{"id": "' + b"a" * 18 * MB
    clients = [hasty.connect() for _ in range(20)]

    def upload(client):
        client.sendall(head(*POST, "Content-Length: 19000000") + part)

    with hasty.others_served(), ThreadPoolExecutor(20) as pool:
        outcomes = [pool.submit(upload, client) for client in clients]
        assert all(isinstance(one.exception(WAIT), OSError | None) for one in outcomes)
        told = [client.recv(40).split(b" ")[1:2] for client in clients]
    # or cut off without a word: its headers came late
    assert {b"".join(one) for one in told} <= {b"408", b"429", b""}
    for client in clients:
        client.close()


@BODIES
@pytest.mark.parametrize("end", [b"", b"\r\n", b"0\r\n", b"x", b"{" * 100])
def test_a_body_that_stops_is_given_up(hasty, end):
    with hasty.connect() as client:
        client.sendall(head(*POST, "Content-Length: 5000") + end)
        assert client.recv(100).startswith(b"HTTP/1.1 408")
    hasty.serves()


# ---- pictures --------------------------------------------------------------------------------------------


@PICTURES
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_as_large_as_allowed_are_decoded_while_others_are_served(decoding, kind):
    large = encoded(bomb(kind))
    with decoding.others_served(), ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(decoding.score, [{"id": "a", "text": "0.5", "images": [large]}] * 4))
    assert [status for status, _ in answers] == [200] * 4
    assert [one["scores"][0].get("label") for _, one in answers] == ["no"] * 4, answers
    assert decoding.grown() < 1000 * MB


@PICTURES
def test_a_request_of_many_large_pictures_costs_nothing(server):
    large = encoded(bomb("grey"))
    posts = [{"id": str(n), "images": [large] * 4} for n in range(4)]
    assert len(json.dumps(posts)) > MB / 4
    with server.others_served():
        status, answer = server.score({"posts": posts})
    assert (status, "cost as much to decode" in answer["error"]) == (413, True)


@PICTURES
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (picture(7100, 7100), "pixels; at most 50,000,000"),
        (picture(40_000, 300), "strip"),
        (many_scans(2000, 2000, 500), "scans; ten are usual"),
        (picture(300, 300, "RGB", "JPEG")[:-300], "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "not an image"),
        (b"GIF89a" + b"\xff" * 40, "not an image"),
        (b"RIFF\x10\0\0\0WEBPVP8L" + b"\xff" * 40, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"II*\0" + b"\xff" * 40, "not an image"),
    ],
    ids=["large", "strip", "scans", "cut", "png", "gif", "webp", "eps", "svg", "tiff"],
)
def test_a_picture_that_may_not_be_read_costs_its_post_alone(server, content, told):
    posts = [{"id": "a", "images": [encoded(content)]}, {"id": "b", "text": "0.25"}]
    status, answer = server.score({"posts": posts})
    assert status == 200
    bad, good = answer["scores"]
    assert told in bad["error"]
    assert "/" not in bad["error"].replace("image/", ""), "where the file lay is nobody's business"
    assert good["probability"] == 0.75


@PICTURES
def test_a_decoder_that_is_killed_costs_its_posts_alone(server):
    large = encoded(bomb("webp"))
    own = psutil.Process(server.process.pid)
    with ThreadPoolExecutor(1) as pool:
        scored = pool.submit(server.score, {"id": "a", "text": "x", "images": [large]})
        until = time.monotonic() + WAIT
        while not scored.done() and time.monotonic() < until:
            for one in own.children():
                with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                    one.kill()
            time.sleep(0.01)
        status, answer = scored.result(WAIT)
    assert status == 200, answer
    assert "cannot be decoded" in answer["scores"][0]["error"]
    server.serves()
    status, answer = server.score({"id": "a", "text": "0.5", "images": [large]})
    assert status == 200
    assert answer["scores"][0].get("label") == "no", f"another one takes its place: {answer}"


@PICTURES
def test_clients_that_leave_take_their_pictures_with_them(server):
    body = json.dumps({"id": "a", "images": [encoded(bomb("16 bits"))]}).encode()
    with server.others_served():
        for _ in range(20):
            with server.connect() as client:
                client.sendall(head(*POST, f"Content-Length: {len(body)}") + body)
    until = time.monotonic() + WAIT
    while float(dict(figures(server))["selftrain_queue_posts"]):
        assert time.monotonic() < until
        time.sleep(0.1)


def figures(server):
    lines = server.request("GET", "/metrics")[1].decode().splitlines()
    return [line.rsplit(" ", 1) for line in lines if line[0] != "#"]


# ---- connections and headers -----------------------------------------------------------------------------


@WIRE
@pytest.mark.parametrize("begun", [b"", b"POST /score HTTP/1.1\r\nHost: lo"], ids=["silent", "half a header"])
def test_half_open_connections_keep_nobody_out(server, begun):
    open_now = []
    try:
        with server.others_served():
            for _ in range(CONNECTIONS + 300):
                open_now.append(server.connect())
                open_now[-1].sendall(begun)
    finally:
        for one in open_now:
            one.close()


@WIRE
def test_headers_that_come_slowly_are_cut_off(hasty):
    with hasty.connect() as client, hasty.others_served():
        client.sendall(b"GET /health HTTP/1.1\r\n")
        client.settimeout(0.05)
        for number in range(1000):
            try:
                client.sendall(b"X-%d: y\r\n" % number)
                if not client.recv(10):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("it waits for headers for ever")


@WIRE
@pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_request_in_parts_is_answered_like_one_in_a_row(server, end, size):
    body = json.dumps({"id": "parts", "text": "0.75"}).encode()
    lines = (*POST, f"Content-Length: {len(body)}", "Connection: close")
    asked = b"".join(line.encode() + end for line in lines) + end + body
    with server.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(asked), size):
            client.sendall(asked[start : start + size])
        answer = received(client)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["scores"][0]["probability"] == 0.75


@WIRE
@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01", b"\x00", b" GET / HTTP/1.1"], ids=["TLS", "nul", "space"]
)
def test_what_no_request_begins_with_is_refused_without_waiting_for_an_end(server, sent):
    with server.connect() as client:
        client.sendall(sent)
        client.settimeout(PROBE)
        assert received(client).startswith(b"HTTP/1.1 400 ")  # what is cut off for being late gets no answer


@WIRE
def test_a_request_gets_in_where_all_places_are_taken_by_half_open_ones(server):
    with ExitStack() as silent:
        first = silent.enter_context(server.connect())
        for number in range(CONNECTIONS):
            one = silent.enter_context(server.connect())
            one.sendall(b"POST /score HTT" if number % 2 else b"")
        server.serves()
        assert not received(first)  # it waited longest


@WIRE
def test_a_server_ends_though_connections_are_half_open(tmp_path):
    server = serve(tmp_path)
    with server.connect() as silent, server.connect() as begun:
        begun.sendall(b"POST /score HTTP/1.1\r\nHost: lo")
        server.serves()
        server.end()
        assert (received(silent), received(begun)) == (b"", b"")


@WIRE
def test_a_request_after_another_has_to_come_in_time_too(hasty):
    with hasty.connect() as client:
        client.sendall(head("GET /health HTTP/1.1", "Host: localhost"))
        answer = b""
        while not answer.endswith(b"}"):  # head and body may come apart
            answer += client.recv(1000)
        client.sendall(b"GET /health HT")
        client.settimeout(WAIT)
        assert not received(client)


@WIRE
def test_a_client_that_does_not_read_is_cut_off(hasty):
    with hasty.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        asked = head("GET /openapi.json HTTP/1.1", "Host: localhost")
        client.settimeout(2)
        with hasty.others_served(), suppress(OSError):  # reset, or full
            while True:
                client.sendall(asked * 100)
        until = time.monotonic() + WAIT
        own = psutil.Process(hasty.process.pid)
        port = client.getsockname()[1]
        while any(one.raddr and one.raddr.port == port for one in own.net_connections("tcp")):
            assert time.monotonic() < until
            time.sleep(0.05)


@WIRE
@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 500,
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        head("GET /health HTTP/1.1", "Host: localhost", "Host: evil.example"),
        head("GET /health HTTP/1.1", "Host: localhost", "X: " + "y" * 100_000),
        head("GET /health HTTP/1.1", "Host: localhost", *(f"X-{n}: y" for n in range(20_000))),
        head("GET /" + "a" * 100_000 + " HTTP/1.1", "Host: localhost"),
        head("GET /health HTTP/1.1", "Host : localhost"),
        head("GET /health HTTP/1.1", " Host: localhost"),
        head("GET /he\x00alth HTTP/1.1", "Host: localhost"),
        head(*POST, "Content-Length: -1"),
        head(*POST, "Content-Length: 1e3"),
        head(*POST, "Content-Length: 5", "Content-Length: 6"),
        head(*POST, "Content-Length: 99999999999999999999999999"),
        head(*POST, "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head(*POST, "Transfer-Encoding: gzip") + b"0\r\n\r\n",
        head(*POST, "Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\n",
        head(*POST, "Transfer-Encoding: chunked") + b"1\r\na\r\n" * 30_000,
        head("GET /health HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade"),
        head("PRI * HTTP/2.0") + b"SM\r\n\r\n",
        head("TRACE /health HTTP/1.1", "Host: localhost"),
        head("CONNECT evil.example:443 HTTP/1.1", "Host: localhost"),
        head("GET http://evil.example/ HTTP/1.1", "Host: localhost"),
        head("GET /../../etc/passwd HTTP/1.1", "Host: localhost"),
        head("GET /health HTTP/1.1", "Host: localhost") * 300,
    ],
    ids=lambda one: one[:24].decode("latin-1").strip() + str(len(one)),
)
def test_what_is_no_request_is_refused_quietly(server, sent):
    logged = sum(map(len, server.log))
    with server.others_served():
        for _ in range(20):
            with server.connect() as client:
                try:
                    client.sendall(sent)
                    client.shutdown(socket.SHUT_WR)
                    answer = received(client)
                except OSError:  # it closed before it had all
                    continue
                assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:100]
    assert sum(map(len, server.log)) - logged < 5000


@WIRE
@pytest.mark.parametrize(
    "lengths",
    [
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
    ],
)
def test_a_body_of_two_lengths_hides_no_second_request(server, lengths):
    hidden = head("GET /model HTTP/1.1", "Host: localhost")
    with server.connect() as client:
        client.sendall(head(*POST, *lengths) + b"0\r\n\r\n" + hidden)
        answer = received(client)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1
    server.serves()


@WIRE
@pytest.mark.parametrize("host", ["[", "evil.example", "[::1]evil"])
@pytest.mark.parametrize("path", ["/nope", "/score/", "/health/"])
def test_no_answer_is_made_of_the_host_header(server, path, host):
    with server.connect() as client:
        client.sendall(head(f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close"))
        answer = received(client)
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"evil" not in answer
    assert b"location" not in answer.lower()


@WIRE
def test_connections_that_are_torn_off_leave_no_trace(server):
    logged = sum(map(len, server.log))
    with server.others_served():
        for number in range(300):
            client = server.connect()
            client.sendall(head(*POST, "Content-Length: 30") + b'{"id": "a", ' * (number % 2))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
            client.close()
    assert sum(map(len, server.log)) == logged


# ---- pages of others -------------------------------------------------------------------------------------


@PAGES
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400),
        ({"Host": "localhost.evil.example"}, 400),
        ({"Host": "evil.example:80"}, 400),
        ({"Host": "127.0.0.1.nip.io"}, 400),
        ({"Host": "localhost@evil.example"}, 400),
        ({"Host": ""}, 400),
        ({"Host": "["}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "https://localhost.evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/json+x"}, 415),
    ],
    ids=str,
)
def test_a_page_of_another_site_gets_no_scores(server, headers, status):
    sent = {"Content-Type": "application/json"} | headers
    body = json.dumps({"id": "a", "text": "0.5"})
    found, answer = server.request("POST", "/score", body, sent)
    assert (found, "scores" in json.loads(answer)) == (status, False)
    if status != 415:
        assert server.request("GET", "/model", headers=headers)[0] == status
    assert server.request("OPTIONS", "/score", headers={"Origin": "http://evil.example"})[0] in (403, 405)


@PAGES
@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "127.0.0.1", "[::1]:80", socket.gethostname()]
)
def test_its_own_names_are_answered(server, host):
    body = json.dumps({"id": "a", "text": "0.5"})
    for more in ({}, {"Content-Type": "application/json; charset=utf-8"}, {"Origin": f"http://{host}"}):
        sent = {"Content-Type": "application/json", "Host": host} | more
        assert server.request("POST", "/score", body, sent)[0] == 200


# ---- its key and its folder ------------------------------------------------------------------------------


@PLACE
@pytest.mark.parametrize("key", ["secret\n", "secret\r\n", " secret", "sec ret", "sec\tret", "sec\x07ret"])
def test_a_key_that_nobody_could_show_is_refused_at_the_start(key, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("SELFTRAIN_TEST_KEY", key)
    assert main(["serve", str(tmp_path), "--port", "0", "--key-variable", "SELFTRAIN_TEST_KEY"]) == 2
    told = capsys.readouterr().err
    assert "the key has a line end, a space or a control character" in told
    assert "secret" not in told


def pipe(place):
    os.mkfifo(place / "in-use")


def link(place):
    (place / "in-use").symlink_to("/dev/zero")


def folder(place):
    (place / "in-use").mkdir()


@PLACE
@pytest.mark.parametrize("put", [pipe, link, folder])
def test_what_others_put_into_a_shared_folder_does_not_hold_up_the_start(put, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    place = tmp_path / "selftrain-serve-x"
    place.mkdir()
    put(place)
    (tmp_path / "selftrain-serve-y").symlink_to(kept)
    opened = []
    starting = threading.Thread(target=lambda: opened.append(Scratch(tmp_path)), daemon=True)
    starting.start()
    starting.join(WAIT)
    assert opened, "it waits"
    opened[0].close()
    assert (kept / "file").exists()
    assert place.exists()


@PLACE
def test_a_full_folder_costs_pictures_alone(tmp_path):
    server = serve(tmp_path, most_file_bytes=2000)
    noise = encoded(os.urandom(3000))
    for _ in range(20):
        status, answer = server.score({"id": "a", "images": [noise]})
        assert (status, "no room for pictures" in answer["error"]) == (503, True)
        server.serves()
    for place in tmp_path.glob("selftrain-serve-*"):
        assert [path.name for path in place.iterdir()] == ["in-use"]
    server.end()


@PLACE
def test_it_ends_in_order_though_nobody_reads_what_it_prints(tmp_path):
    server = serve(tmp_path)
    server.process.stdout.close()
    server.end()

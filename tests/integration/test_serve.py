"""`selftrain serve` on a real run and a real socket: scores, company, bad requests, goodbyes, and the end."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_helpers import here
from http_helpers import ask
from processes import Process, selftrain

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
WAIT = 300


class Server:
    """A `selftrain serve` in a process of its own."""

    def __init__(self, model, *options, temporary, **environment):
        words = ("-m", "selftrain", "serve", model, "--port", "0", *options)
        self.process = Process(words, env=ENVIRONMENT | {"TMPDIR": str(temporary)} | environment)
        self.first = self.process.stdout.readline()
        assert self.first.startswith("listening on http://127.0.0.1:"), self.process.stderr.read()
        self.port = int(self.first.split(",")[0].rpartition(":")[2])
        self.seen = [self.status("/ready")]

    def wait_ready(self):
        until = time.monotonic() + WAIT
        while self.seen[-1] != 200:
            assert time.monotonic() < until
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.1)
            self.seen.append(self.status("/ready"))
        return self

    def request(self, method, path, body=None, headers=None):
        return ask(self.port, method, path, body, headers, timeout=WAIT)

    def status(self, path):
        return self.request("GET", path)[0]

    def score(self, posts):
        status, body = self.request("POST", "/score", json.dumps({"posts": posts}))
        assert status == 200, body
        return json.loads(body)["scores"]

    def measured(self, name):
        for line in self.request("GET", "/metrics")[1].decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        return 0.0

    def end(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
        out, err = self.process.communicate(timeout=WAIT)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(small_run, temporary):
    server = Server(small_run, temporary=temporary).wait_ready()
    yield server
    server.end()


@pytest.fixture(scope="module")
def manifest(small_run):
    return small_run.parent / "data" / "manifest.jsonl"


@pytest.fixture(scope="module")
def posts(manifest):
    """Thirty of the run's posts as a client sends them."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()[:30]]
    return [
        {
            "id": row["id"],
            "text": row.get("text", ""),
            "images": [
                base64.b64encode((manifest.parent / name).read_bytes()).decode()
                for name in row.get("images", [])
            ],
        }
        for row in rows
    ]


@pytest.fixture(scope="module")
def predicted(small_run, manifest, tmp_path_factory):
    """Id -> what `selftrain predict` says."""
    out = tmp_path_factory.mktemp("predicted") / "out.jsonl"
    done = selftrain("predict", small_run, manifest, "--out", out, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}


def assert_predicted(scores, predicted):
    assert scores
    for one in scores:
        expected = predicted[one["id"]]["probabilities"]
        assert one["probabilities"] == pytest.approx(expected, abs=5e-6)
        if abs(expected[one["label"]] - 0.5) > 1e-5:
            assert one["label"] == predicted[one["id"]]["label"]
        assert one["process"] == {}


def test_the_port_is_open_before_the_model_is_loaded_and_says_so(server):
    assert server.seen[0] == 503
    assert server.seen[-1] == 200
    assert server.status("/health") == 200


def test_many_clients_at_once_get_the_scores_of_predict(server, posts, predicted):
    assert {(bool(post["text"]), min(len(post["images"]), 2)) for post in posts} >= {(True, 1), (False, 1)}
    before = server.measured("selftrain_batch_posts_count"), server.measured("selftrain_batch_posts_sum")
    parts = [[post] for post in posts] + [posts[:7], posts[7:30]]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(server.score, parts))
    for part, scores in zip(parts, answers, strict=True):
        assert [one["id"] for one in scores] == [post["id"] for post in part]
        assert_predicted(scores, predicted)
    calls = server.measured("selftrain_batch_posts_count") - before[0]
    scored = server.measured("selftrain_batch_posts_sum") - before[1]
    assert scored == 60
    assert calls < 32, "requests that waited together shared calls"


def test_the_model_names_itself(server, small_run):
    told = json.loads(server.request("GET", "/model")[1])
    assert (told["kind"], told["name"], told["positive"]) == ("classifier", "run", "invitation")
    assert told["classes"] == ["invitation", "advertisement"]
    assert len(told["fingerprint"]) == 64


def test_a_damaged_picture_costs_its_post_alone(server, posts, predicted):
    good = next(post for post in posts if post["images"])
    cut = base64.b64encode(base64.b64decode(good["images"][0])[:-200]).decode()
    scores = server.score([good, {"id": "cut", "images": [cut]}])
    assert_predicted(scores[:1], predicted)
    assert scores[1]["error"].startswith("images[0]: cannot be decoded")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\x00\xff", 400),
        (b'{"posts": [{"id": "a", "text": "x", "url": "http://127.0.0.1/"}]}', 422),
        (b'{"posts": [{"id": "a", "images": ["http://127.0.0.1/x.png"]}]}', 422),
        (json.dumps({"posts": [{"id": str(n), "text": "x"} for n in range(257)]}).encode(), 413),
    ],
)
def test_wrong_input_is_refused_and_the_server_goes_on(server, posts, predicted, body, status):
    found, answer = server.request("POST", "/score", body)
    assert found == status
    assert json.loads(answer)["error"]
    assert_predicted(server.score(posts[:1]), predicted)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_end_is_refused_before_it_has_arrived(small_run, server, chunked):
    """The answer comes while the client still sends."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as client:
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 100000000000"
        client.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\n" + length + b"\r\n\r\n")
        sent, piece = 0, b"x" * 65536
        try:
            while chunked and sent < 400_000_000:
                client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += len(piece)
        except OSError:
            pass  # the server closed, as it should
        assert sent < 100_000_000
        if not chunked:
            assert client.recv(100).startswith(b"HTTP/1.1 413")
    assert server.status("/ready") == 200


def test_clients_that_go_away_break_nothing(server, posts, predicted):
    body = json.dumps({"posts": posts}).encode()
    head = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as client:
            client.sendall(head + body)
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as client:
            client.sendall(head + b"{")
    assert_predicted(server.score(posts), predicted)
    until = time.monotonic() + WAIT
    while server.measured("selftrain_queue_posts"):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_nothing_of_any_request_is_left_on_the_disk(server, temporary, posts):
    server.score(posts[:3])
    (folder,) = temporary.glob("selftrain-serve-*")
    until = time.monotonic() + WAIT
    while [path.name for path in folder.iterdir()] != ["in-use"]:
        assert time.monotonic() < until, list(folder.iterdir())
        time.sleep(0.05)


def test_sigterm_finishes_what_was_taken_refuses_the_rest_and_exits_0(small_run, posts, predicted, tmp_path):
    server = Server(small_run, "--max-batch", "1", temporary=tmp_path).wait_ready()
    with ThreadPoolExecutor(4) as pool:
        taken = [pool.submit(server.score, posts) for _ in range(3)]
        until = time.monotonic() + WAIT
        while server.measured("selftrain_queue_posts") < 60:
            assert time.monotonic() < until
        server.process.send_signal(signal.SIGTERM)
        while server.status("/ready") == 200:
            assert time.monotonic() < until
        assert json.loads(server.request("GET", "/ready")[1])["status"] == "draining"
        assert server.status("/health") == 200
        status, _ = server.request("POST", "/score", json.dumps(posts[0]))
        assert status == 503
        for one in taken:
            assert_predicted(one.result(WAIT), predicted)
    out, err = server.process.communicate(timeout=WAIT)  # it ends by itself
    assert (server.process.returncode, err) == (0, "")
    assert "ending" in out
    assert list(tmp_path.glob("selftrain-*")) == []


def test_a_second_signal_does_not_wait(small_run, posts, tmp_path):
    server = Server(small_run, "--max-batch", "1", temporary=tmp_path).wait_ready()
    many = [posts[n % len(posts)] | {"id": str(n)} for n in range(250)]
    with ThreadPoolExecutor(4) as pool:
        given = [pool.submit(server.score, many) for _ in range(4)]
        until = time.monotonic() + WAIT
        while server.measured("selftrain_queue_posts") < 700:
            assert time.monotonic() < until
        server.process.send_signal(signal.SIGTERM)
        while server.status("/ready") == 200:
            assert time.monotonic() < until
        code, _, err = server.end()
        assert (code, err) == (0, "")
        assert any(one.exception(WAIT) for one in given)
    assert list(tmp_path.glob("selftrain-*")) == []


def test_a_killed_server_leaves_a_folder_that_the_next_one_removes(small_run, tmp_path):
    server = Server(small_run, temporary=tmp_path).wait_ready()
    assert server.end(signal.SIGKILL)[0] == -signal.SIGKILL
    (left,) = tmp_path.glob("selftrain-*")
    server = Server(small_run, temporary=tmp_path)
    assert not left.exists()
    assert server.end(signal.SIGINT)[0] == 0  # while it loads, too


def test_the_key_comes_from_the_environment(small_run, posts, tmp_path):
    server = Server(small_run, "--key-variable", "MY_KEY", temporary=tmp_path, MY_KEY="s3cret").wait_ready()
    body = json.dumps(posts[0])
    assert server.request("POST", "/score", body)[0] == 401
    assert server.request("POST", "/score", body, {"Authorization": "Bearer s3cret"})[0] == 200
    code, out, err = server.end()
    assert code == 0
    assert "s3cret" not in out + err


def test_what_cannot_be_served_is_said_and_exits_2(small_run, server, tmp_path):
    taken = here("serve", small_run, "--port", server.port)
    assert taken.returncode == 2
    assert f"127.0.0.1:{server.port} cannot be listened on (Address already in use)" in taken.stderr
    empty = here("serve", tmp_path, "--port", 0)
    assert empty.returncode == 2
    assert f"error: {tmp_path} is empty; expected a run folder" in empty.stderr
    unset = here("serve", small_run, "--key-variable", "NOT_SET_ANYWHERE")
    assert unset.returncode == 2
    assert "NOT_SET_ANYWHERE is not set" in unset.stderr
    small = here("serve", small_run, "--max-queue", 10)
    assert small.returncode == 2
    assert "raise --max-queue" in small.stderr

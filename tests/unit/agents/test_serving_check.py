"""Whether a server can do what agents need: its steps, its failures, and the picture that it is shown."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from http.server import ThreadingHTTPServer

import pytest
from PIL import Image
from serving_fake import handler

from agents.client.endpoints import HttpReply
from agents.vllm.check import ask, check_server, drawn_picture, fetch
from selftrain.cli import main


@contextlib.contextmanager
def fake(tmp_path, behaviour, lists=True):
    """A fake server in a thread; its endpoint."""

    class Handler(handler(behaviour, tmp_path / "notes")):
        def do_GET(self):  # noqa: N802
            super().do_GET() if lists else self.send_error(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    for name in ("VLLM_API_KEY", "SELFTRAIN_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_a_server_that_can(tmp_path):
    with fake(tmp_path, "good") as endpoint:
        alive, model, answer = check_server(endpoint)
    assert [alive.passed, model.passed, answer.passed] == [True, True, True]
    assert model.detail == "fake (/models/fake, 4096 tokens, vllm 0.32.0)"
    assert "50 prompt tokens, 20 of them of images, 16 cached" in answer.detail
    assert "white space" not in answer.detail


def test_what_it_lacks_is_noted(tmp_path):
    with fake(tmp_path, "roomy") as endpoint:
        *_, answer = check_server(endpoint)
    assert answer.passed
    assert "it allows white space in JSON" in answer.detail
    assert "--enable-prompt-tokens-details" in answer.detail


@pytest.mark.parametrize(
    ("behaviour", "arguments", "what", "detail"),
    [
        ("text only", {}, "answer", "about an image: HTTP 400, fake is not a multimodal model"),
        ("free", {}, "answer", "not JSON: 'I think so.'"),
        ("good", {"model": "other"}, "model", "does not serve 'other'; it serves: fake"),
    ],
)
def test_the_first_failure_is_the_last_step(tmp_path, behaviour, arguments, what, detail):
    with fake(tmp_path, behaviour) as endpoint:
        *before, last = check_server(endpoint, **arguments)
    assert all(check.passed for check in before)
    assert (last.what, last.passed) == (what, False)
    assert detail in last.detail


def test_a_text_only_server_answers_about_a_text(tmp_path):
    with fake(tmp_path, "text only") as endpoint:
        *_, answer = check_server(endpoint, image=False)
    assert answer.passed
    assert "about a text" in answer.detail


def test_a_key_is_needed_and_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "a-secret")
    with fake(tmp_path, "good") as endpoint:
        *_, refused = check_server(endpoint)
        assert all(check.passed for check in check_server(endpoint, key="a-secret"))
    assert refused.detail == "/v1/models: HTTP 401, Unauthorized: set the key in the environment"


def test_a_gateway_that_lists_no_models_is_asked_for_the_one_that_is_named(tmp_path):
    with fake(tmp_path, "good", lists=False) as endpoint:
        assert all(check.passed for check in check_server(endpoint, model="fake"))
        *_, refused = check_server(endpoint)
    assert refused.detail.startswith("/v1/models: HTTP 404")


@pytest.mark.parametrize(("key", "status"), [(" a-secret\n", 0), ("a\nsecret", 2)])
def test_a_key_with_blanks_is_shown_without_those_around_it_or_refused(
    tmp_path, monkeypatch, capsys, key, status
):
    monkeypatch.setenv("VLLM_API_KEY", "a-secret")  # the server's
    monkeypatch.setenv("SELFTRAIN_API_KEY", key)
    with fake(tmp_path, "good") as endpoint:
        assert main(["agents", "check", endpoint]) == status
    told = "the key in the environment variable SELFTRAIN_API_KEY holds blanks"
    assert (told in capsys.readouterr().err) == (status == 2)


def test_nobody_there():
    [only] = check_server("http://127.0.0.1:9")
    assert not only.passed
    assert "Connection refused" in only.detail


def test_the_command_says_it_all_and_fails_where_one_cannot(tmp_path, capsys):
    with fake(tmp_path, "good") as good, fake(tmp_path, "text only") as blind:
        assert main(["agents", "check", good]) == 0
        assert main(["agents", "check", good, blind + "/v1"]) == 1
        assert main(["agents", "check", blind, "--text-only"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [good, "  alive   ok      it answers", lines[2]]
    assert f"{blind}" in lines
    assert sum(line.startswith("  answer  FAILED") for line in lines) == 1


def test_the_command_wants_an_endpoint(capsys):
    assert main(["agents", "check", "no address at all"]) == 2
    assert "error:" in capsys.readouterr().err


def test_the_picture_is_one():
    first, second = drawn_picture(), drawn_picture(7)
    with Image.open(io.BytesIO(first.data)) as image:
        image.load()
        assert (image.size, image.mode, image.format) == ((64, 64), "RGB", "PNG")
    assert first.source != second.source
    assert drawn_picture() == first


def test_a_redirect_is_not_followed(tmp_path):
    with fake(tmp_path, "elsewhere") as endpoint:
        assert fetch(f"{endpoint}/health", "a-secret").status == 302


def test_a_proxy_is_not_asked_for_our_own_servers(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with fake(tmp_path, "good") as endpoint:
        assert ask(endpoint, "fake", "", image=True, seconds=10).fault == ""


RAY_REFUSES = json.dumps({"error": {
    "message": "Message: smollm2 is not a multimodal model (Request ID: 537129a1-4e52-439d-b360-3ee0933201d5)"
    ", Internal exception: ray.llm._internal.serve.core.configs.openai_api_models.OpenAIHTTPException"
    " (Request ID: 537129a1-4e52-439d-b360-3ee0933201d5), original exception: ",
    "type": "OpenAIHTTPException", "param": None, "code": 400,
}}).encode()  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (HttpReply(400, json.dumps({"error": {"message": "too long"}}).encode()), "HTTP 400, too long"),
        (HttpReply(401, b'{"error": "Unauthorized"}'), "HTTP 401, Unauthorized"),
        (HttpReply(404, b"Not \xff Found"), "HTTP 404, Not \N{REPLACEMENT CHARACTER} Found"),
        (HttpReply(500, b"[1]"), "HTTP 500, [1]"),
        (HttpReply(0, b"refused"), "refused"),
        (HttpReply(500, b"x" * 400), "HTTP 500, " + "x" * 297 + "..."),
        # as Ray Serve LLM 2.60 answers
        (HttpReply(400, RAY_REFUSES), "HTTP 400, smollm2 is not a multimodal model"),
        (
            HttpReply(404, b'{"detail": "Got request for model \\"x\\"."}'),
            'HTTP 404, Got request for model "x".',
        ),
        (
            HttpReply(400, b'{"error": {"message": "Message: none, of nobody"}}'),
            "HTTP 400, Message: none, of nobody",
        ),
    ],
)
def test_the_servers_own_words(reply, words):
    assert reply.words == words

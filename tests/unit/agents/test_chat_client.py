"""Requests and answers through the chat client: what is sent, what is read, what is never shown."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
import math
import socket
import ssl
import traceback

import pytest
from chat_stub import ChatStub, answers, ask, card, completion, connected, is_silent, raw, refuses, run, says

from agents.ask.label_probs import label_probs
from agents.client.base import (
    ChatRequest,
    Completion,
    Message,
    PromptSize,
    Sampling,
    Token,
    Usage,
    picture,
    route_to,
)
from agents.client.client import ChatClient
from agents.client.endpoints import _innermost_words, plain_endpoint, retry_after, tls_words
from agents.errors import CallFailedError, RequestRefusedError, ServerLostError, ServerRefusedError
from agents.vllm.check import check_server

pytestmark = pytest.mark.filterwarnings("error")
PNG = picture(b"\x89PNG not really", "image/png")
SCHEMA = {"type": "object", "properties": {"label": {"enum": ["a", "b"]}}, "required": ["label"]}
SECRET = "sk-very-secret-0123456789"


def answered(*script, request=None, **arguments):
    """The answer to one request, and what the server received."""
    got = []

    async def scenario():
        stub = ChatStub(*script)
        async with connected(stub, **arguments) as (client, _):
            got.append(await client.complete(request or ask()))
        got.append(stub.received)

    run(scenario())
    return got


def failed(*script, kind, request=None, **arguments):
    """The error of one request."""
    caught = []

    async def scenario():
        async with connected(ChatStub(*script), **arguments) as (client, _):
            with pytest.raises(kind) as info:
                await client.complete(request or ask())
            caught.append(info.value)

    run(scenario())
    return caught[0]


def test_a_plain_request_and_its_answer():
    answer, (sent,) = answered(says(completion("yes", finish="length")))
    assert answer == Completion("yes", "length", Usage(10, 0, 0, 2), (), "", answer.seconds)
    assert 0 < answer.seconds < 30
    assert sent.path == "/v1/chat/completions"
    assert sent.body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 8,
        "temperature": 0.0,
        "seed": 0,
    }


def test_parts_pictures_schema_and_log_probabilities_are_sent():
    turns = (
        Message("system", ("policy", "second")),
        Message("user", (PNG, "what is it?")),
        Message("assistant", ("a cat",)),
        Message("user", (PNG,)),
        Message("user", ()),
    )
    listed = [{"token": "ok", "logprob": -0.5}]
    logprobs = {"content": [{"token": "ok", "logprob": -0.5, "top_logprobs": listed}]}
    request = ChatRequest(turns, SCHEMA, Sampling(5, temperature=0.5, seed=7, top_logprobs=3))
    _, (sent,) = answered(says(completion(logprobs=logprobs)), request=request)
    url = "data:image/png;base64," + base64.b64encode(PNG.data).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    assert [m["content"] for m in sent.body["messages"]] == [
        [{"type": "text", "text": "policy"}, {"type": "text", "text": "second"}],
        [image, {"type": "text", "text": "what is it?"}],
        "a cat",
        [image],
        "",
    ]
    assert [m["role"] for m in sent.body["messages"]] == ["system", "user", "assistant", "user", "user"]
    answer = {"name": "answer", "schema": SCHEMA, "strict": True}
    assert sent.body["response_format"] == {"type": "json_schema", "json_schema": answer}
    assert (sent.body["temperature"], sent.body["seed"], sent.body["max_tokens"]) == (0.5, 7, 5)
    assert (sent.body["logprobs"], sent.body["top_logprobs"]) == (True, 3)


def test_tokens_without_what_the_grammar_masked_but_with_what_was_drawn():
    listed = [("a", -0.25), ("b", -2.0), ("<x>", -9999.0)]
    top = [{"token": token, "logprob": value} for token, value in listed]
    content = [
        {"token": "a", "logprob": -0.25, "top_logprobs": top},
        {"token": "z", "logprob": -7.0, "top_logprobs": top},
    ]
    answer, _ = answered(says(completion("az", logprobs={"content": content})), request=ask(top_logprobs=3))
    both = [("a", -0.25), ("b", -2.0)]
    read = [one._replace(alternatives=[*one.alternatives]) for one in answer.tokens]
    assert read == [Token("a", -0.25, both), Token("z", -7.0, [*both, ("z", -7.0)])]


def test_log_probabilities_without_alternatives_are_no_certainty():
    text = '{"label":"rude"}'
    content = [{"token": t, "logprob": -0.05, "top_logprobs": []} for t in ('{"label":"', 'rude"}')]
    answer, _ = answered(says(completion(text, logprobs={"content": content})), request=ask(top_logprobs=2))
    assert label_probs(answer.tokens, {"rude": "rude", "kind": "kind"}, ("rude", "kind")) is None


@pytest.mark.parametrize("tokens", [("a\u0120caf", "\u00c3\u00a9"), ("a\u2581caf", "\u00e9")])
def test_tokens_that_come_as_the_vocabulary_has_them(tokens):
    content = [{"token": t, "logprob": -1.0, "top_logprobs": [{"token": t, "logprob": -1.0}]} for t in tokens]
    body = completion("a caf\u00e9", logprobs={"content": content})
    answer, _ = answered(says(body), request=ask(top_logprobs=2))
    assert [token.text for token in answer.tokens] == ["a caf", "\u00e9"]


def test_usage_with_its_parts_and_a_refusal():
    usage = {
        "prompt_tokens": 300,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 96, "multimodal_tokens": {"image": 118}},
    }
    answer, _ = answered(says(completion(None, usage=usage, refusal="I will not")))
    assert (answer.usage, answer.text, answer.refusal) == (Usage(300, 96, 118, 4), "", "I will not")


def test_an_answer_without_usage_or_log_probabilities_is_one():
    answer, _ = answered(says(completion() | {"usage": None}), request=ask(top_logprobs=2))
    assert (answer.text, answer.counted, answer.usage, answer.tokens) == ("ok", False, Usage(), ())


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_thoughts_are_kept_apart(key):
    answer, _ = answered(says(completion("yes", **{key: "let me see"})))
    assert (answer.text, answer.reasoning) == ("yes", "let me see")


def test_further_keys_of_a_body_are_sent():
    request = ChatRequest((Message("user", ("hi",)),), None, Sampling(8, top_logprobs=0), extra={"top_k": 1})
    _, (sent,) = answered(request=request)
    assert sent.body["top_k"] == 1


def logprobs_of(value):
    return {"content": [{"token": "ok", "logprob": value, "top_logprobs": [{"token": "ok", "logprob": -1}]}]}


HOSTILE = {
    "a gigabyte": lambda: b'{"choices": "' + b"x" * (40 << 20) + b'"}',
    "deep": lambda: b"[" * 1_000_000,
    "deep inside": lambda: json.dumps(completion()).encode().replace(b'"ok"', b"[" * 500_000),
    "tokens": lambda: completion(usage={"prompt_tokens": 10**19, "completion_tokens": 1}),
    "log-probability 800": lambda: completion(logprobs=logprobs_of(800)),
    "log-probability abc": lambda: completion(logprobs=logprobs_of("abc")),
    "log-probability NaN": lambda: completion(logprobs=logprobs_of(math.nan)),
    "text for an object": lambda: {"choices": "abc"},
    "half a surrogate": lambda: json.dumps(completion("\ud83d")).encode(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_broken_and_costs_nothing_but_tries(name):
    error = failed(*[says(HOSTILE[name]())] * 2, kind=CallFailedError, request=ask(top_logprobs=2), retries=1)
    assert len(str(error)) < 1200


def test_what_was_packed_is_not_unpacked():
    bomb = gzip.compress(json.dumps(completion("x" * (30 << 20))).encode())
    error = failed(*[says(bomb, content_encoding="gzip")] * 2, kind=CallFailedError, retries=1)
    assert "compressed" in str(error)
    _, (sent,) = answered()
    assert sent.headers["accept-encoding"] == "identity"


def test_errors_of_any_size_and_depth_are_told_shortly():
    for body in (b"x" * (40 << 20), b"[" * 500_000, b'{"error": ' * 100_000):
        # as many as may be tried while the patience lasts
        always = [says(body, 500)] * 100
        error = failed(*always, kind=(CallFailedError, ServerLostError), retries=1, patience=0.2)
        assert len(str(error)) < 2500


async def drips(stub, received, writer):
    """A byte now and then, for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


def test_a_byte_now_and_then_prolongs_nothing():
    error = failed(drips, drips, kind=CallFailedError, retries=1, timeout=0.3)
    assert "no answer within 0.3 s" in str(error)


def test_a_key_in_an_answer_is_masked_before_anybody_keeps_it(monkeypatch):
    monkeypatch.setenv("SELFTRAIN_API_KEY", SECRET)
    answer, _ = answered(says(completion(f"you sent {SECRET}")))
    assert answer.text == "you sent [SELFTRAIN_API_KEY]"


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [{"mess',
        b"<html>sign in</html>",
        b"[1]",
        {"choices": []},
        {"object": "list"},
        {"choices": [{"message": None}]},
        completion(7),
        completion(usage={"prompt_tokens": -1, "completion_tokens": 1}),
    ],
)
def test_a_broken_answer_is_asked_for_again(body):
    answer, sent = answered(says(body), says(body), says(completion("whole")), retries=2)
    assert (answer.text, len(sent)) == ("whole", 3)


def test_broken_answers_only():
    error = failed(*[says(b'{"choices": [{"mess')] * 3, kind=CallFailedError, retries=2)
    assert "no answer in 3 tries" in str(error)
    assert "no JSON" in str(error)
    assert '{"choices": [{"mess' in str(error)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_request_that_the_server_refuses_is_not_repeated(status):
    caught = []

    stub = ChatStub(refuses(status, "maximum context length is 4096 tokens"))
    async with connected(stub) as (client, _):
        with pytest.raises(RequestRefusedError) as info:
            await client.complete(ask())
        caught.append(str(info.value))
        assert (await client.complete(ask("next"))).text == "to next"
    assert len(stub.received) == 2
    assert f"HTTP {status}: maximum context length is 4096 tokens" in caught[0]


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "set the environment variable SELFTRAIN_API_KEY"),
        (403, "SELFTRAIN_API_KEY"),
        (404, "still serve"),
    ],
)
def test_a_server_that_refuses_us(status, advice, monkeypatch):
    monkeypatch.delenv("SELFTRAIN_API_KEY", raising=False)
    error = failed(refuses(status), kind=ServerRefusedError)
    assert f"HTTP {status}" in str(error)
    assert advice in str(error)


async def test_a_redirect_is_not_followed():
    other = await ChatStub().start()
    stub = ChatStub(says(b"", 307, location=f"{other.url}/v1/chat/completions"))
    async with connected(stub) as (client, _):
        with pytest.raises(ServerRefusedError, match="give the final URL"):
            await client.complete(ask())
    await other.stop()
    assert other.received == []


async def test_measure_counts_pictures_as_what_they_add():
    stub = ChatStub()
    async with connected(stub) as (client, _):
        assert await client.measure(ask("text")) == PromptSize(10, 0)
        assert len(stub.received) == 1
        assert await client.measure(ask("text", PNG, PNG)) == PromptSize(138, 128)
    assert {sent.path for sent in stub.received} == {"/tokenize"}
    assert stub.received[-1].text == "text"


async def test_measure_without_tokenize():
    async with connected(ChatStub(says({"detail": "Not Found"}, 404))) as (client, _):
        with pytest.raises(ServerRefusedError, match="needs vLLM's /tokenize"):
            await client.measure(ask())


# as Ray Serve LLM 2.60 answers: its path of this name wants a prompt, and counts none of vLLM 0.32
NO_CONVERSATION = {
    "error": {
        "message": "Invalid request format: Field required at ('body', 'prompt')", "type": "missing",
        "param": {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]},
        "code": "invalid_parameter",
    }
}  # fmt: skip


async def test_measure_where_tokenize_counts_no_conversations():
    stub = ChatStub(says(NO_CONVERSATION, 400), refuses(400, "a picture that cannot be read"))
    async with connected(stub) as (client, _):
        with pytest.raises(ServerRefusedError, match="needs vLLM's /tokenize"):
            await client.measure(ask())
        with pytest.raises(RequestRefusedError, match="a picture that cannot be read"):
            await client.measure(ask())


async def test_measure_gives_up_soon_where_nobody_counts(monkeypatch):
    monkeypatch.setattr("agents.client.client._COUNTING_SECONDS", 0.05)

    stub = ChatStub(*[is_silent] * 9)
    async with connected(stub) as (client, _):
        with pytest.raises(CallFailedError, match=r"no answer in 2 tries.* no answer within 0\.05 s"):
            await client.measure(ask())
    assert len(stub.received) == 2


def echoing(status):
    """A server that shows the key to whoever asks."""

    async def behave(stub, received, writer):
        await refuses(status, f"bad: {received.headers['authorization']}")(stub, received, writer)

    return behave


async def echoing_broken(stub, received, writer):
    await says(b"<p>" + received.headers["authorization"].encode())(stub, received, writer)


async def echoing_garbage(stub, received, writer):
    await raw(received.headers["authorization"].encode() + b"\r\n\r\n")(stub, received, writer)


@pytest.mark.parametrize(
    "behave",
    [*(echoing(status) for status in (400, 401, 404, 429, 500, 503)), echoing_broken, echoing_garbage],
)
def test_the_key_is_sent_and_never_shown(behave, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", f" {SECRET}\n")
    caplog.set_level(logging.DEBUG)
    shown = []

    async def scenario():
        stub = ChatStub(usual=behave)
        async with connected(stub, key_variable="MY_KEY", retries=1, patience=0.1) as (client, events):
            with pytest.raises((RequestRefusedError, ServerRefusedError, ServerLostError)) as info:
                await client.complete(ask())
            shown.extend(
                [
                    repr(client),
                    repr(vars(client)),
                    repr(client.endpoints),
                    repr(events),
                ]
            )
            error = info.value
            while error is not None:
                shown.extend([*traceback.format_exception(error), repr(error), repr(vars(error))])
                error = error.__cause__ or error.__context__
        assert stub.received[0].headers["authorization"] == f"Bearer {SECRET}"

    run(scenario())
    shown.extend([caplog.text, *(repr(vars(record)) for record in caplog.records)])
    assert SECRET not in "\n".join(shown)


def test_what_the_server_said_is_shown_without_the_key(monkeypatch):
    monkeypatch.setenv("SELFTRAIN_API_KEY", SECRET)
    error = failed(echoing(401), kind=ServerRefusedError)
    assert "bad: Bearer [SELFTRAIN_API_KEY] (the key in SELFTRAIN_API_KEY is not accepted" in str(error)


async def test_the_key_in_a_list_of_models_is_not_shown_either(monkeypatch):
    monkeypatch.setenv("SELFTRAIN_API_KEY", SECRET)

    stub = await ChatStub(cards=[card(SECRET)]).start()
    with pytest.raises(ServerRefusedError) as info:
        async with connected(stub, model="wanted"):
            raise AssertionError("it must not open")
    await stub.stop()
    assert "it serves: [SELFTRAIN_API_KEY]" in str(info.value)


def test_without_a_key(monkeypatch):
    monkeypatch.delenv("SELFTRAIN_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_ORG_ID", "my-organisation")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "my-project")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", SECRET)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Mine: {SECRET}\nAuthorization: Bearer {SECRET}")
    _, (sent,) = answered()
    assert sent.headers["authorization"] == "Bearer EMPTY"
    assert not {"openai-organization", "openai-project", "x-mine"} & set(sent.headers)
    assert SECRET not in repr(sent.headers)


@pytest.mark.parametrize("key", ["two words", "clé", "line\nbreak"])
def test_a_key_that_no_header_can_carry(key, monkeypatch):
    monkeypatch.setenv("SELFTRAIN_API_KEY", key)
    with pytest.raises(ServerRefusedError, match="SELFTRAIN_API_KEY") as info:
        asyncio.run(ChatClient(["http://127.0.0.1:1"]).open())
    assert key not in str(info.value)


def test_a_proxy_in_the_environment_is_not_asked_for_this_machine(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    answer, _ = answered()
    assert answer.text == "to hello"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:8101", "http://127.0.0.1:8101"),
        ("http://127.0.0.1:8101/v1/", "http://127.0.0.1:8101"),
        (" https://host/models/v1", "https://host/models"),
        ("http://[::1]:80/", "http://[::1]:80"),
    ],
)
def test_endpoints(given, used):
    assert plain_endpoint(given) == used


@pytest.mark.parametrize(
    "given",
    [
        ["127.0.0.1:8101"],
        ["http://"],
        ["http://host:port"],
        ["ftp://host"],
        ["http://my host:80"],
        ["http://256.1.1.1"],
        ["http://a..b:80"],
        [f"http://{'a' * 64}"],
        ["http://host:0"],
        ["http://\0:1"],
        [],
        ["http://a:1", "http://a:1/v1"],
    ],
)
def test_endpoints_that_are_none(given):
    with pytest.raises(ServerRefusedError, match="expected"):
        ChatClient(given)


def test_an_endpoint_with_a_password_is_refused_without_showing_it():
    with pytest.raises(ServerRefusedError, match="environment variable") as info:
        ChatClient([f"http://me:{SECRET}@host:80"])
    assert SECRET not in str(info.value)


async def test_a_client_that_is_not_open():
    client = ChatClient(["http://127.0.0.1:1"])
    with pytest.raises(RuntimeError, match="opened before"):
        await client.complete(ask())
    assert client.endpoints == ()
    await client.close()
    with pytest.raises(RuntimeError, match="opened once"):
        await client.open()


async def test_a_hook_that_fails_fails_nothing_else(caplog):
    stub = await ChatStub(refuses(429)).start()

    def hook(name, figures):
        raise ValueError(name)

    client = ChatClient([stub.url], on_event=hook, backoff=0.001)
    await client.open()
    assert (await client.complete(ask())).text == "to hello"
    await client.close()
    await stub.stop()
    assert "on_event failed at 'retry'" in caplog.text


def test_retry_after_as_a_number_or_a_date():
    assert retry_after(None) is None
    assert retry_after("2.5") == 2.5
    assert retry_after("-1") == 0
    assert retry_after("Sun, 06 Nov 1994 08:49:37 GMT") == 0
    assert retry_after("Fri, 06 Nov 2099 08:49:37 GMT") > 1e9
    assert retry_after("soon") is None


def test_the_stub_tells_pictures_from_text():
    """The stub's own count, on which the test of `measure` stands."""
    body = json.dumps({"messages": [{"content": [{"type": "image_url"}, {"type": "text"}]}]})
    written = []

    class Writer:
        write = staticmethod(written.append)

    from chat_stub import Received

    asyncio.run(answers(None, Received("/tokenize", {}, json.loads(body)), Writer()))
    assert b'"count": 74' in written[0]


@pytest.mark.parametrize(
    ("url", "variable", "value"),
    [
        ("http://models.example.org", "ALL_PROXY", "socks5://127.0.0.1:9"),
        ("http://models.example.org", "HTTP_PROXY", "socks://me:secret@x"),
        ("https://models.example.org", "HTTPS_PROXY", "http://127.0.0.1:port"),
        ("http://models.example.org", "HTTP_PROXY", "http://127.0.0.1:99999"),
        ("http://models.example.org", "HTTP_PROXY", "http://a..b:1"),
        ("http://models.example.org", "HTTP_PROXY", "socks5h://me:s@cret secret@127.0.0.1:9"),
        ("https://models.example.org", "SSL_CERT_FILE", "/nonexistent/ca.pem"),
        ("https://models.example.org", "SSL_CERT_FILE", __file__),  # no certificate in it
        ("https://127.0.0.1:8000", "SSL_CERT_FILE", "/"),
        ("https://models.example.org", "SSL_CERT_DIR", __file__),
    ],
)
def test_an_environment_that_no_call_could_use_is_named(monkeypatch, url, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ServerRefusedError, match=variable) as caught:
        route_to(url)
    assert "secret" not in str(caught.value)
    assert route_to("http://127.0.0.1:8000") == (None, "", False)
    if "CERT" in variable:  # nothing but TLS needs it
        assert route_to("http://models.example.org") == (None, "", False)


def test_a_failure_names_the_proxy_that_was_called(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "here.example.org,10.0.0.0/8,there.example.org:8000,[2001:db8::/32]")
    told = " (called through the proxy http://127.0.0.1:9 of HTTP_PROXY)"
    for url in ("http://models.example.org", "http://11.0.0.1", "http://there.example.org"):
        assert route_to(url).words() == told
    for host in (
        "here.example.org",
        "a.here.example.org",
        "10.1.2.3",
        "there.example.org:8000",
        "[2001:db8::1]",
    ):
        assert route_to(f"http://{host}").proxy is None
        assert route_to(f"http://{host}").words() == ""


async def test_a_page_of_the_proxy_is_told_as_one(monkeypatch):
    """What answers may be the proxy; a name that nobody knows is no number."""

    stub = await ChatStub().start()
    stub.guarded = True
    monkeypatch.setenv("HTTP_PROXY", stub.url)
    told = rf"HTTP 401: .*\(called through the proxy {stub.url} of HTTP_PROXY\)"
    with pytest.raises(ServerRefusedError, match=told):
        await ChatClient(["http://models.example.org"]).open()
    found = await asyncio.to_thread(lambda: [*check_server("http://models.example.org")])
    assert f"(called through the proxy {stub.url} of HTTP_PROXY)" in found[-1].detail
    await stub.stop()
    unknown = ConnectionError("Connection error.")
    unknown.__cause__ = socket.gaierror(-2, "Name or service not known")
    assert _innermost_words(unknown) == "Name or service not known"


@pytest.mark.parametrize("excused", ["models.example.org", "*"])
def test_a_proxy_that_is_not_called_is_not_judged(monkeypatch, excused):
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:9")
    assert route_to("http://models.example.org").proxy is None  # of https alone
    monkeypatch.setenv("NO_PROXY", excused)
    assert route_to("https://models.example.org").proxy is None


@pytest.mark.parametrize(
    "path", ["", "/", "/v1", "/v1/", "/v1/models", "/v1/chat/completions", "/v1/completions"]
)
def test_an_address_that_is_copied_from_elsewhere_is_that_of_its_server(path):
    assert plain_endpoint(f"http://models.example.org:8000/llm{path}") == "http://models.example.org:8000/llm"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)",
            "write http:// in place of https://",
        ),
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: expired (_ssl.c:1006)",
            "not trusted (expired): put",
        ),
    ],
)
def test_a_failure_of_tls_says_what_to_do(words, told):
    failed = ssl.SSLError(1, words)
    assert told in tls_words(failed)
    outer = ConnectionError("Connection error.")
    outer.__cause__ = failed
    assert told in _innermost_words(outer)

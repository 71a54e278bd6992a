"""Which model answers: read at the start, agreed between endpoints, checked when one comes back."""

from __future__ import annotations

import os

import pytest
from chat_stub import ChatStub, ask, card, connected, refuses, response, run, waits

from agents.client.base import Identity
from agents.client.client import ChatClient
from agents.client.fleet import fingerprint
from agents.errors import ServerLostError, ServerRefusedError

pytestmark = pytest.mark.filterwarnings("error")


def identity_of(*stubs, **arguments):
    got = []

    async def scenario():
        for stub in stubs:
            await stub.start()
        client = ChatClient([stub.url for stub in stubs], **arguments)
        try:
            got.append(await client.open())
        finally:
            await client.close()
            for stub in stubs:
                await stub.stop()

    run(scenario())
    return got[0]


def test_the_only_model_is_taken():
    expected = Identity("tiny", "/models/tiny", "", "", "vllm 1.2", 4096)
    assert identity_of(ChatStub()) == expected
    assert identity_of(ChatStub(), ChatStub(), model="tiny") == expected


def test_a_revision_that_the_user_states():
    assert identity_of(ChatStub(), revision="abc").revision == "abc"


def test_several_models_and_none_named():
    stub = ChatStub(cards=[card("one"), card("two")])
    with pytest.raises(ServerRefusedError, match=r"serves 2 models \(one, two\): say which"):
        identity_of(stub)


def test_a_model_that_is_not_served():
    with pytest.raises(ServerRefusedError, match="does not serve 'other'; it serves: tiny"):
        identity_of(ChatStub(), model="other")


@pytest.mark.parametrize("parent", ["tiny", "org/tiny"])
def test_an_adapter(parent):
    """Its card has no length, and names its base as served or, where the user said so, otherwise."""
    cards = [card(), card("mine", "/adapters/mine", parent, None)]
    identity = identity_of(ChatStub(cards=cards), model="mine")
    assert identity == Identity("mine", "/adapters/mine", "/models/tiny", "", "vllm 1.2", 4096)


class OddVersion(ChatStub):
    """A server that has something else where vLLM tells its version."""

    def __init__(self, answer):
        super().__init__(cards=[{"id": "gpt", "object": "model"}])
        self.answer = answer

    def _get(self, path):
        return self.answer if path == "/version" else super()._get(path)


@pytest.mark.parametrize(
    "stub",
    [
        ChatStub(cards=[{"id": "gpt", "object": "model"}], version=None),
        OddVersion(response(200, b"<html>")),
        OddVersion(response(200, b"<html>", content_encoding="gzip")),
        OddVersion(response(500, {"error": "no such page"})),
        OddVersion(response(503, b"<html>")),  # busy, as it seems, but for how long
        OddVersion(response(302, {}, location="http://models.example.org/login")),
    ],
)
def test_a_server_without_a_version(stub):
    assert identity_of(stub) == Identity("gpt", "gpt", "", "", "openai-compatible", 0)


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        (ChatStub(cards=[card(root="/models/else")]), "/models/else"),
        (ChatStub(cards=[card(context=2048)]), "2048 tokens"),
        (ChatStub(version="1.3"), "vllm 1.3"),
    ],
)
def test_endpoints_that_disagree(other, shown):
    with pytest.raises(ServerRefusedError, match="serve different models") as info:
        identity_of(ChatStub(), other, same=("context", "server"))
    assert shown in str(info.value)
    assert "tiny (/models/tiny, 4096 tokens, vllm 1.2)" in str(info.value)


def test_endpoints_of_one_model_may_differ_in_version_and_context():
    assert identity_of(ChatStub(), ChatStub(version="1.3"), ChatStub(cards=[card(context=2048)])) == (
        Identity("tiny", "/models/tiny", "", "", "vllm 1.2", 2048)
    )


def test_a_server_that_lists_other_models_than_it_is_asked_for():
    """Azure lists models and is asked for deployments; vLLM would have listed it."""
    stub = ChatStub(cards=[card("base")], version=None)
    assert identity_of(stub, model="mine") == Identity("mine", "mine", "", "", "openai-compatible", 0)


@pytest.mark.parametrize("name", ["x\u001b[31m", "a\u202eb", "n" * 500])
def test_a_model_of_a_hostile_name_is_refused(name):
    with pytest.raises(ServerLostError, match="no ModelList"):
        identity_of(ChatStub(cards=[card(name)]), patience=0.05, probe_delays=(0.01, 0.02))


def test_a_key_that_is_refused_at_the_start(monkeypatch):
    monkeypatch.delenv("SELFTRAIN_API_KEY", raising=False)
    stub = ChatStub()
    stub.guarded = True
    with pytest.raises(ServerRefusedError, match=r"HTTP 401.*SELFTRAIN_API_KEY"):
        identity_of(stub)


async def test_nobody_answers_at_the_start():
    stub = await ChatStub().start()
    await stub.stop()
    client = ChatClient([stub.url], patience=0.05, probe_delays=(0.01, 0.02))
    with pytest.raises(ServerLostError) as info:
        await client.open()
    message = str(info.value)
    assert f"for 0.05 s ({stub.url}: Connection refused)" in message
    assert "is kept" in message
    assert client.endpoints[0].up is False


async def test_an_endpoint_that_is_down_at_the_start_joins_later():
    late = await ChatStub(usual=waits).start()
    await late.stop()
    first = ChatStub(usual=waits)
    async with connected(first, late, maximum=1) as (client, events):
        assert [state.up for state in client.endpoints] == [True, False]
        assert events.of("down")[0]["endpoint"] == late.url
        await late.start()
        await events.until("up", 2)
        assert [state.up for state in client.endpoints] == [True, True]


async def test_an_endpoint_that_comes_back_with_another_model_is_left_out(caplog):
    steady, changing = ChatStub(), ChatStub(refuses(500), cards=[card()])
    async with connected(changing, steady) as (client, events):
        changing.cards = [card(root="/models/else")]
        assert (await client.complete(ask())).text == "to hello"  # the 500 sent it on
        await changing.asked("/v1/models", changing.gets["/v1/models"] + 3)
        state = client.endpoints[0]
        assert not state.up
        assert "/models/else" in state.reason
        assert "/models/tiny" in state.reason
        changing.cards = [card()]
        await events.until("up", 3)
        assert client.endpoints[0].up
    assert [record.levelname for record in caplog.records if "left out" in record.message] == ["WARNING"]


async def test_an_endpoint_that_comes_back_without_the_model_is_left_out(caplog):
    steady, changing = ChatStub(), ChatStub(refuses(500), cards=[card()])
    async with connected(changing, steady, model="tiny") as (client, _):
        changing.cards = [card("huge")]
        assert (await client.complete(ask())).text == "to hello"
        await changing.asked("/v1/models", changing.gets["/v1/models"] + 2)
        assert "it serves: huge" in client.endpoints[0].reason
    assert caplog.text.count("left out") == 1


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    (tmp_path / "chat_template.jinja").write_text("x")
    (tmp_path / "README.md").write_text("x")
    for file in tmp_path.iterdir():
        os.utime(file, ns=(10**18, 10**18))
    return tmp_path


def test_the_fingerprint_of_a_folder(weights):
    stub = ChatStub(cards=[card(root=str(weights))])
    revision = identity_of(stub).revision
    assert revision == fingerprint(str(weights))
    assert len(revision) == 64


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "chat_template.jinja"])
def test_the_fingerprint_follows_size_time_and_configuration(weights, name):
    before, file = fingerprint(str(weights)), weights / name
    os.utime(file, ns=(10**18, 10**18 + 1))
    touched = fingerprint(str(weights))
    file.write_bytes(file.read_bytes() + b" ")
    os.utime(file, ns=(10**18, 10**18))
    assert len({before, touched, fingerprint(str(weights))}) == 3


def test_the_fingerprint_reads_the_configuration_and_nothing_else(weights):
    before = fingerprint(str(weights))
    (weights / "model.safetensors").write_bytes(b"4321")
    (weights / "README.md").write_text("longer")
    os.utime(weights / "model.safetensors", ns=(10**18, 10**18))
    assert fingerprint(str(weights)) == before
    (weights / "config.json").write_text('{"a": 2}')
    os.utime(weights / "config.json", ns=(10**18, 10**18))
    assert fingerprint(str(weights)) != before


async def test_an_endpoint_that_comes_back_with_other_weights_is_left_out(weights, caplog):
    cards = [card(root=str(weights))]
    steady, changing = ChatStub(cards=cards), ChatStub(refuses(500), cards=cards)
    async with connected(changing, steady) as (client, events):
        (weights / "model.safetensors").write_bytes(b"other")
        assert (await client.complete(ask())).text == "to hello"
        await changing.asked("/v1/models", changing.gets["/v1/models"] + 2)
        assert f"the files in {weights} had changed" in client.endpoints[0].reason
        assert len(events.of("up")) == 2
    assert caplog.text.count("left out") == 1


def test_an_adapter_has_two_fingerprints(weights, tmp_path_factory):
    mine = tmp_path_factory.mktemp("adapter")
    (mine / "adapter_config.json").write_text("{}")
    cards = [card(root=str(weights)), card("mine", str(mine), "tiny", None)]
    revision = identity_of(ChatStub(cards=cards), model="mine").revision
    assert revision == f"{fingerprint(str(mine))}+{fingerprint(str(weights))}"


def test_no_fingerprint_of_a_hub_name(monkeypatch, tmp_path):
    (tmp_path / "org").mkdir()
    monkeypatch.chdir(tmp_path)
    assert fingerprint("org") == ""
    assert fingerprint(str(tmp_path / "absent")) == ""


@pytest.mark.parametrize(
    ("metadata", "context"),
    [
        ({"model_id": "tiny", "input_modality": "text", "max_request_context_length": 4096}, 4096),
        ({"model_id": "tiny", "input_modality": "text", "max_request_context_length": None}, 0),
        *(({"max_request_context_length": value}, 0) for value in (-1, 0, True, 4096.5, "4096", 10**10)),
        *((value, 0) for value in (None, "gpt", ["a"], 7, {})),
    ],
)
def test_the_context_that_ray_serve_tells_of_and_others_do_not(metadata, context):
    listed = {"id": "tiny", "object": "model", "owned_by": "organization-owner", "permission": []}
    stub = ChatStub(cards=[listed | {"metadata": metadata}], version=None)
    assert identity_of(stub) == Identity("tiny", "tiny", "", "", "openai-compatible", context)

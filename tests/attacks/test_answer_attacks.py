"""Answers of model servers that lie, files of answers, and the headers of models of strangers."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import torch
from chat_stub import ChatStub, completion, raw, says
from safetensors.torch import save_file

from agents.ask.answer_schema import AnswerSchema, parse_answer
from agents.client.endpoints import Endpoint, Failure, Key, retry_after
from agents.client.messages import BrokenAnswerError, ChatAnswer, ModelList, ServerVersion, read_body
from agents.errors import JudgmentError, ReplayError
from agents.judgment import Judgment, State
from agents.replayed import replayed_agents
from selftrain.agentps import served
from selftrain.errors import RunStateError, ServingError
from selftrain.models.act_model import ACTModel
from selftrain.models.calibration import Calibration
from selftrain.models.finetune_network import FORMATS, NetworkShape, load_finetuned
from selftrain.models.head import CLASSES_FORMAT, HeadSettings, load_head

CLIENTS = pytest.mark.attack("servers: what they answer")
MODELS = pytest.mark.attack("models: their headers")
REPLAYED = pytest.mark.attack("files: answers of models")

SECRET = "sk-<very>&secret-0123456789"


@CLIENTS
@pytest.mark.parametrize(
    "value",
    [
        "Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 01 Jan 0000 00:00:00 GMT",
        "Mon, 01 Jan 0001 00:00:00 -0000",
        "Thu, 01 Jan 1970 00:00:00 +99999999999999999999", "Fri, 31 Dec 9999 23:59:59 -2359", "(" * 2000,
        "\xb2",
        "Mon, 99 Jan 2027 00:00:00", "", ",", "nan", "9" * 5000, "-inf",
    ],
    ids=lambda one: one[:40],
)  # fmt: skip
def test_no_date_of_a_server_ends_a_call_otherwise_than_in_a_wait(value):
    assert not retry_after(value) or retry_after(value) > 0


def escaped(text, *which):
    return "".join(f"\\u{ord(c):04X}" if not which or c in which[0] else c for c in text)


@CLIENTS
@pytest.mark.parametrize(
    "shown",
    [SECRET, escaped(SECRET), escaped(SECRET, "<>&"), escaped(SECRET, "s")],
    ids=["plain", "all", "go", "s"],
)
def test_a_key_that_comes_back_in_escapes_is_kept_nowhere(shown):
    masked = Key("MY_KEY", SECRET).mask(
        json.dumps(completion("you sent HERE \u00e9")).replace("HERE", shown).encode()
    )
    text = read_body(masked, ChatAnswer).completion(seconds=0.0).text
    assert text == "you sent [MY_KEY] \u00e9"


@CLIENTS
@pytest.mark.parametrize("status", [400, 401, 418, 500])
async def test_neither_the_key_nor_an_escape_gets_out_of_a_status_line(status):
    stub = await ChatStub(
        raw(f"HTTP/1.1 {status} {SECRET} \x9b2J\r\ncontent-length: 0\r\n\r\n".encode("latin-1"))
    ).start()
    endpoint = Endpoint(stub.url, Key("MY_KEY", SECRET), 1, 20.0)
    failure = await endpoint.exchange("/v1/chat/completions", b"{}")
    await endpoint.close()
    await stub.stop()
    assert isinstance(failure, Failure)
    assert SECRET not in failure.reason
    assert failure.reason.isprintable()


@CLIENTS
@pytest.mark.parametrize("place", ["content", "refusal", "reasoning"])
def test_half_a_surrogate_pair_beside_an_infinity_is_no_answer(place):
    body = completion(**{"text": "x"} | ({"text": "\ud800"} if place == "content" else {place: "\ud800"}))
    body["usage"]["odd"] = float("-inf")
    with pytest.raises(BrokenAnswerError):
        read_body(json.dumps(body).encode(), ChatAnswer)


@CLIENTS
def test_what_a_server_says_at_length_is_kept_in_short():
    body = completion("", finish="f" * 900_000, refusal="no " * 300_000)
    found = read_body(json.dumps(body).encode(), ChatAnswer).completion(seconds=0.0)
    assert len(found.finish) == 80
    assert len(parse_answer(found, AnswerSchema(("a", "b"), "unsure")).fault) < 500


@CLIENTS
@pytest.mark.parametrize("name", ["a\n", "a\u2066b", "a\u061cb", "a\ufeffb", "a\U000e0041b", "a\u2028b"])
def test_a_model_has_no_name_that_hides_or_breaks_a_line(name):
    for kind, body in ((ModelList, {"data": [{"id": name}]}), (ServerVersion, {"version": name})):
        with pytest.raises(BrokenAnswerError):
            read_body(json.dumps(body).encode(), kind)


@CLIENTS
@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(("/v1/models", one) for one in ({}, {"data": None}, {"data": [1]}, {"data": "x"}, [[]])),
        ("/v1/models", {"data": [{"id": 3}]}),
        *(
            ("/pooling", one)
            for one in (
                {"data": None}, {"data": [1]}, {"data": [{"data": "AAAA"}]},
                {"data": [{"index": "x", "data": ""}]},
                {"data": [{"index": 0, "data": "A"}]}, {"data": [{"index": 0, "data": "AAA="}]},
                {"data": [{"index": 0, "data": "AADAfwAAwH8AAMB/AADAfwAAwH8AAMB/AADAfwAAwH8="}]},
                {"data": []},
            )
        ),
        *(
            ("/tokenize", one)
            for one in ({}, {"tokens": None}, {"tokens": ["x"]}, {"tokens": []}, {"tokens": [10**30]}, [1])
        ),
    ],
)  # fmt: skip
async def test_what_is_no_model_and_no_state_is_said(path, body, monkeypatch):
    monkeypatch.setattr(served, "_PAUSES", ())
    model = object.__new__(served.ServedModel)
    model._timeout, model._width, model._name, model._compared = 20.0, 4, "tiny", set()
    stub = await ChatStub(usual=says(body)).start()
    stub._get = lambda _: json_reply(body)
    model._endpoint = stub.url
    do = {
        "/v1/models": model._served_name,
        "/pooling": lambda: model._states({"input": [[1, 2]]}, [2]),
        "/tokenize": lambda: model._compare({"messages": []}, [1, 2], 1),
    }[path]
    with pytest.raises(ServingError):
        await asyncio.to_thread(do)
    await stub.stop()


def json_reply(body):
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(data), data)


# ---- files of answers -------------------------------------------------------------------------------------


@REPLAYED
@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"post_id": ' + "9" * 5000 + "}", "[]", "3", "NaN"], ids=lambda one: one[:9]
)
def test_a_line_that_is_no_answer_is_named(line, tmp_path):
    (tmp_path / "answers.jsonl").write_text(line)
    with pytest.raises(ReplayError, match=r"answers\.jsonl, line 1"):
        replayed_agents(tmp_path / "answers.jsonl")


@REPLAYED
@pytest.mark.parametrize(
    "details",
    [
        {"probabilities": []}, {"probabilities": {"a": "x", "b": 1}}, {"probabilities": {"z": 1}},
        {"log_odds": 3},
        {"log_odds": {"a": 1e9, "b": 1}}, {"log_odds": {"a": float("-inf"), "b": float("-inf")}},
    ],
    ids=str,
)  # fmt: skip
def test_evidence_that_is_no_number_for_each_class_is_said(details):
    judgment = Judgment("reviewer", 0, State.LABEL, "a", 0.5, "x", "s", details)
    with pytest.raises(JudgmentError, match="no number for each class"):
        judgment.log_probs(("a", "b"))


# ---- models ----------------------------------------------------------------------------------------------

SETTINGS = HeadSettings(hidden=3)._asdict()
TENSORS = {
    "columns": torch.arange(4), "mean": torch.zeros(4), "scale": torch.ones(4),
    "layers.0.weight": torch.zeros(3, 4),
    "layers.0.bias": torch.zeros(3), "layers.3.weight": torch.zeros(2, 3), "layers.3.bias": torch.zeros(2),
}  # fmt: skip
HEADER = {
    "format": CLASSES_FORMAT, "classes": ["a", "b"], "settings": SETTINGS,
    "calibration": Calibration()._asdict(),
    "positive": "a", "backbone": {"name": "", "options": {}, "fingerprint": ""},
}  # fmt: skip


def model(folder, header, tensors=None):
    file = folder / "model.safetensors"
    save_file(TENSORS | (tensors or {}), file, {"selftrain": json.dumps(HEADER | header)})
    return file


@MODELS
@pytest.mark.parametrize(
    "header",
    [
        {"settings": SETTINGS | {"hidden": 200_000_000}}, {"settings": SETTINGS | {"hidden": "x"}},
        {"settings": []},
        {"settings": SETTINGS | {"kind": []}}, {"settings": SETTINGS | {"dropout": "x"}}, {"classes": 3},
        {"calibration": []}, {"calibration": {"slope": "x", "offsets": []}}, {"calibration": {"slope": 1}},
        {"calibration": {"slope": 1, "offsets": [0]}}, {"calibration": {"slope": 1, "offsets": 0}},
        {"format": {}},
    ],
    ids=str,
)  # fmt: skip
def test_a_head_that_its_header_does_not_describe_is_refused_before_it_is_built(header, tmp_path):
    with pytest.raises(RunStateError, match=r"model\.safetensors"):
        load_head(model(tmp_path, header), [CLASSES_FORMAT])


@MODELS
@pytest.mark.parametrize(
    "tensors",
    [
        {"columns": torch.zeros(4)}, {"columns": torch.tensor([-9, 0, 1, 2])}, {"mean": torch.zeros(3)},
        {"columns": torch.zeros(2, 2, dtype=torch.long)}, {"mean": torch.zeros(4, dtype=torch.bfloat16)},
    ],
    ids=lambda one: str(next(iter(one.values())).tolist()),
)  # fmt: skip
def test_columns_that_are_none_are_refused(tensors, tmp_path):
    with pytest.raises(RunStateError, match=r"model\.safetensors"):
        load_head(model(tmp_path, {}, tensors), [CLASSES_FORMAT])


@MODELS
@pytest.mark.parametrize(
    "backbone",
    [
        None, [], {}, {"name": [1], "options": {}, "fingerprint": ""}, {"name": "clip", "options": [1],
        "fingerprint": ""},
        {"name": "clip", "options": {"model": [], "weights": {}}, "fingerprint": ""},
        {"name": "minilm_efficientnet", "options": {"evil": 1}, "fingerprint": ""},
        {"name": "minilm_efficientnet", "options": {}, "fingerprint": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_model_whose_header_names_no_backbone_is_refused(backbone, tmp_path):
    model(tmp_path, {"backbone": backbone})
    with pytest.raises(RunStateError, match="does not say how it reads posts"):
        ACTModel.load(tmp_path)


@MODELS
def test_a_header_of_brackets_is_no_traceback(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", {"selftrain": "[" * 100_000})
    with pytest.raises(RunStateError, match="cannot be read as a model"):
        load_head(tmp_path / "model.safetensors", [CLASSES_FORMAT])


@MODELS
def test_columns_beyond_the_features_of_a_backbone_are_said(tmp_path):
    classifier, _ = load_head(model(tmp_path, {}, {"columns": torch.tensor([0, 1, 2, 9])}), [CLASSES_FORMAT])
    with pytest.raises(RunStateError, match="reads column 9 of a post's features, and these have 4"):
        classifier.predict(np.zeros((2, 4), np.float32))


@MODELS
@pytest.mark.parametrize(
    "wrong",
    [
        {"lora_rank": 1 << 30}, {"lora_rank": "x"}, {"hidden": 1 << 30}, {"outputs": 1 << 30},
        {"head": "linear"}, {"mode": "full", "hidden": 1 << 30}, {"mode": []}, {"mode": "evil"},
    ],
    ids=str,
)  # fmt: skip
def test_an_architecture_that_its_weights_are_not_of_is_refused_before_it_is_built(wrong, tmp_path):
    weights = {f"head.{name}": one.clone() for name, one in TENSORS.items()}
    weights["a.lora_A.default"] = torch.zeros(2, 4)
    shape = NetworkShape(mode="lora", hidden=3, lora_rank=2, outputs=2)
    header = {"architecture": shape._asdict(), "pretrained": "0" * 64}

    def saved(**architecture):
        about = header | {"architecture": header["architecture"] | architecture}
        return model(tmp_path, about | {"format": FORMATS["lora"]}, weights)

    assert load_finetuned(saved())[0].architecture == shape
    with pytest.raises(RunStateError, match=r"model\.safetensors"):
        load_finetuned(saved(**wrong))

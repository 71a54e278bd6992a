"""What a merged model's server is asked, asked again for, and what ends the scoring; on a stub."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil

import numpy as np
import pytest
import torch
from agentps_helpers import SHOWN, TASK, albums, merged_and_scored
from chat_stub import ChatStub, refuses, resets, response, run, says
from mllm_families import LIMITS, WIDTH, qwen25_vl
from PIL import Image
from transformers import AutoModelForImageTextToText

from backbones.mllm.load import load_reader
from backbones.mllm.prompts import Prompt
from selftrain.agentps import served
from selftrain.agentps.checkpoint import MERGED
from selftrain.agentps.dataset import question_set
from selftrain.agentps.evaluate import ScoredPost
from selftrain.agentps.frames import load_frames
from selftrain.agentps.model import assemble
from selftrain.data.posts import Post
from selftrain.errors import ModelError, ServingError
from selftrain.store import checksums


def asked(*script, monkeypatch, usual=None):
    """What comes of one question to a stub that behaves so, and how often it was asked."""
    monkeypatch.setattr(served, "_PAUSES", (0.0, 0.0))
    found = []

    async def scenario():
        stub = await ChatStub(*script, usual=usual or says({"data": [7]})).start()
        try:
            answer = await asyncio.to_thread(served.ask, f"{stub.url}/pooling", {"input": []}, 30.0)
            found.append(json.loads(answer))
        except ServingError as error:
            found.append(str(error))
        found.append(len(stub.received))
        await stub.stop()

    run(scenario())
    return found


@pytest.mark.parametrize("failure", [refuses(503), refuses(429), refuses(500), refuses(408), resets])
@pytest.mark.parametrize("times", [1, 2])
def test_what_may_pass_is_asked_twice_again(failure, times, monkeypatch):
    assert asked(*[failure] * times, monkeypatch=monkeypatch) == [{"data": [7]}, times + 1]


@pytest.mark.parametrize(
    ("failure", "told"),
    [(refuses(503, "starting"), "HTTP 503, starting"), (resets, "does not answer as a vLLM")],
)
def test_what_does_not_pass_ends_after_three(failure, told, monkeypatch):
    message, count = asked(*[failure] * 3, monkeypatch=monkeypatch)
    assert told in message
    assert count == 3


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            refuses(400, "task token_embed is not supported"),
            "task token_embed is not supported. Expected a vLLM",
        ),
        (refuses(401), "HTTP 401"),
    ],
)
def test_what_another_question_would_meet_again_is_told_at_once(answer, told, monkeypatch):
    message, count = asked(answer, monkeypatch=monkeypatch)
    assert told in message
    assert count == 1


# ---- pictures -------------------------------------------------------------------------------------------


class Pictures:
    """A merged model with pictures, posts, what it says of them here, and a stub that knows its states."""

    def __init__(self, folder):
        built = assemble(SHOWN, question_set(TASK, SHOWN.variant), qwen25_vl().base())
        self.folder, self.expected = merged_and_scored(built, SHOWN, TASK, albums(folder), folder)
        self.posts = [one.example for one in self.expected]
        reader = load_reader(
            self.folder, "tiny", question_set(TASK, SHOWN.variant).wording, SHOWN.padding, SHOWN.max_tokens
        )
        whole = AutoModelForImageTextToText.from_pretrained(self.folder, dtype="float32").base_model
        self.tokens, self.states = {}, {}  # the prompt and its states, by the post's pictures
        for post in self.posts[:-1]:  # the last cannot be read
            inputs = reader.read([Prompt(post.text, load_frames(post.pictures, SHOWN.frames))])
            shown = tuple(_sent(one) for one in load_frames(post.pictures, SHOWN.frames))
            with torch.inference_mode():
                self.states[shown] = whole(**inputs).last_hidden_state[0]
            self.tokens[shown] = inputs["input_ids"][0].tolist()

    def _score(self, address):
        return list(served.ServedModel(self.folder, address, batch=1).score(self.posts))

    def scored(self, monkeypatch, *script, tokens=None):
        """What a served model says of the posts, or the error; and what the stub received."""
        monkeypatch.setattr(served, "_PAUSES", ())
        found = []

        async def answers(stub, received, writer):
            body = received.body
            parts = body["messages"][0]["content"] if "messages" in body else []
            shown = tuple(one["image_url"]["url"] for one in parts if one["type"] == "image_url")
            if received.path == "/tokenize":
                writer.write(response(200, {"tokens": tokens or self.tokens[shown]}))
                return
            assert shown or body["input"] == [self.tokens[()]]
            data = base64.b64encode(self.states[shown].numpy().tobytes()).decode()
            writer.write(response(200, {"data": [{"index": 0, "data": data}]}))

        async def scenario():
            stub = await ChatStub(*script, usual=answers).start()
            try:
                found.append(await asyncio.to_thread(self._score, stub.url))
            except ServingError as error:
                found.append(str(error))
            found.append(stub.received)
            await stub.stop()

        run(scenario())
        return found


def _sent(image):
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return Pictures(tmp_path_factory.mktemp("pictures"))


def test_what_is_told_of_other_answers_is_carried_not_judged():
    """As without a server: a post may have fields of somebody else's, called like ours."""
    model = object.__new__(served.ServedModel)
    model.asked = question_set(TASK, "agentps")
    model.score = lambda posts: (ScoredPost(one, (), "not read here") for one in posts)
    post = Post("a", "x", process={"colour": "red"}, extra={"process_provenance": "by hand"})
    assert [one.reason for one in model.predict([post])] == ["not read here"]


def test_pictures_go_with_the_words_and_words_alone_as_tokens(pictures, monkeypatch):
    scored, received = pictures.scored(monkeypatch)
    assert [bool(one.reason) for one in scored] == [False] * (len(scored) - 1) + [True]
    for one, other in zip(scored, pictures.expected, strict=True):
        assert one.reason == other.reason
        for a, b in zip(one.answers, other.answers, strict=True):
            assert np.abs(a - b).max() < 1e-5
    # the prompt is looked up once for a post of one picture, once for one of two
    assert [one.path for one in received].count("/tokenize") == 2
    asked = [one.body for one in received if one.path == "/pooling"]
    assert ["input" in one for one in asked] == [True] + [False] * (len(asked) - 1)
    for body in asked[1:]:
        assert body["task"] == "token_embed"
        assert body["add_generation_prompt"] is True
        [turn] = body["messages"]
        *shown, words = turn["content"]
        assert len(shown) in (1, 2)
        assert words["text"].count("<ans>") == len(TASK.questions)
        sent = [base64.b64decode(one["image_url"]["url"].partition(",")[2]) for one in shown]
        assert {Image.open(io.BytesIO(one)).size for one in sent} == {(90, 60)}


def test_a_server_of_another_model_is_told_by_its_tokens(pictures, monkeypatch):
    one_picture = next(ids for shown, ids in pictures.tokens.items() if len(shown) == 1)
    for tokens, place in (
        ([*one_picture[:7], 3, *one_picture[8:]], 7),
        (one_picture[:-2], len(one_picture) - 2),
    ):
        message, received = pictures.scored(monkeypatch, tokens=tokens)
        assert f"of a post with 1 pictures the server makes {len(tokens)} tokens" in message
        assert f"differ from token {place} on" in message
        assert received[-1].path == "/tokenize"


@pytest.mark.parametrize("fault", ["is not a multimodal model", "At most 0 image(s) may be provided"])
def test_a_server_that_takes_no_pictures_says_so_itself(fault, pictures, monkeypatch):
    words = says({"data": [{"index": 0, "data": _numbers(pictures.states[()])}]})
    message, _ = pictures.scored(monkeypatch, words, refuses(400, fault))
    assert fault in message
    assert "Expected a vLLM server" in message


def test_another_number_of_states_is_told(pictures, monkeypatch):
    words = says({"data": [{"index": 0, "data": _numbers(pictures.states[()])}]})
    shown, tokens = next((shown, ids) for shown, ids in pictures.tokens.items() if len(shown) == 1)
    short = says({"data": [{"index": 0, "data": _numbers(pictures.states[shown][1:])}]})
    message, _ = pictures.scored(monkeypatch, words, says({"tokens": tokens}), short)
    assert f"gave [{(len(tokens) - 1) * WIDTH}] numbers, expected [{len(tokens) * WIDTH}]" in message


def _numbers(states):
    return base64.b64encode(states.contiguous().numpy().tobytes()).decode()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"album": "video"}, "reads as training does of llava_onevision alone"),
        ({"base": "smollm2_efficientnet"}, "can serve words alone"),
    ],
)
def test_pictures_that_no_server_takes_are_refused_before_it_is_asked(settings, told, pictures, tmp_path):
    folder = tmp_path / "merged"
    shutil.copytree(pictures.folder, folder)
    about = json.loads((folder / MERGED).read_text())
    about["architecture"] |= settings
    checksums.write_json(folder / MERGED, about)
    with pytest.raises(ModelError, match=told):
        served.ServedModel(folder, "http://127.0.0.1:9")


@pytest.mark.parametrize(("kind", "family"), [("gemma3", "Gemma-3"), ("lfm2_vl", "LFM2-VL")])
def test_families_of_which_vllm_gives_other_states_are_refused(kind, family, pictures, tmp_path):
    folder = tmp_path / "merged"
    shutil.copytree(pictures.folder, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ModelError, match=f"{LIMITS[family][1]}.* Leave --server out"):
        served.ServedModel(folder, "http://127.0.0.1:9")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no kind of model"):
        served.ServedModel(folder, "http://127.0.0.1:9")

"""Servers that people use, each as it differs from vLLM: all pass `agents check`, and a round."""

from __future__ import annotations

import asyncio
import json
import math
import re

import pytest
from chat_stub import ChatStub, ask, card, completion, refuses, response
from vlm_helpers import BRIEF, PostStub

from agents.ask.answer_schema import parse_answer
from agents.ask.cache import ResponseCache
from agents.ask.guard import guard_words
from agents.ask.judge import JudgePanel, JudgePrompts, VLMAgent
from agents.ask.metering import Manner
from agents.ask.protocols import PROTOCOLS
from agents.ask.runner import Runner
from agents.client.base import ChatRequest, Message, Sampling
from agents.client.client import ChatClient
from agents.client.moderation import ModerationClient
from agents.errors import RequestRefusedError
from agents.judgment import Candidate, State
from agents.vllm.check import check_server

pytestmark = pytest.mark.filterwarnings("error")


def answering(*refusals, alternatives=20, usage=True, wrap=str, thoughts="", apart=True):
    """What a server says: it refuses a body that one of `refusals` is about, and answers the others.

    Args:
        refusals: (whether it is about a body, status, message).
        alternatives: Of each token; 0: no log-probabilities, although they were asked for.
        usage: Whether it counts tokens.
        wrap: From its answer to what it writes.
        thoughts: Written before the answer, when there is room.
        apart: Whether the server takes them apart; else they are words that the template has begun.
    """

    async def behave(stub, received, writer):
        body = received.body
        for about, status, message in refusals:
            if about(body):
                return await refuses(status, message)(stub, received, writer)
        labels, keys = asked_for(body)
        labels.sort(key=lambda label: "rude" not in label)  # whatever the order in which they are offered
        text = json.dumps({key: labels[0] if key == "label" else "it says so" for key in keys})
        room = body.get("max_tokens") or body["max_completion_tokens"]
        if thoughts and room < 1000:
            cut = (
                completion("", finish="length", reasoning=thoughts)
                if apart
                else completion(thoughts, finish="length")
            )
            return writer.write(response(200, cut | ({} if usage else {"usage": None})))
        logprobs = None
        if body.get("logprobs") and alternatives:
            logprobs = {"content": tokens(text, labels, min(alternatives, body["top_logprobs"]))}
        more = {"reasoning_content": thoughts} if thoughts and apart else {}
        begun = "" if apart else f"{thoughts}\n</think>\n\n"
        whole = completion(begun + wrap(text), logprobs=logprobs, **more)
        return writer.write(response(200, whole | ({} if usage else {"usage": None})))

    return behave


def asked_for(body):
    """The labels and keys that a body's schema wants, or its words where it has none."""
    wanted = body.get("response_format", {})
    if wanted.get("type") == "json_schema":
        properties = wanted["json_schema"]["schema"]["properties"]
        return properties["label"]["enum"], list(properties)
    words = json.dumps(body["messages"], ensure_ascii=False).replace('\\"', '"').replace('\\\\"', '"')
    listed = re.search(r'one of ((?:"[^"]+"(?:, )?)+)', words).group(1)
    return re.findall('"([^"]+)"', listed), ["rationale", "label"]


def tokens(text, labels, count):
    head, tail = text.split(f'"{labels[0]}"')
    shares = [0.9, *[0.1 / (len(labels) - 1)] * (len(labels) - 1)]
    listed = [
        {"token": f'"{label}"', "logprob": math.log(p)} for label, p in zip(labels, shares, strict=True)
    ]
    return [
        {"token": one, "logprob": logprob, "top_logprobs": top[:count]}
        for one, logprob, top in (
            (head, 0.0, [{"token": head, "logprob": 0.0}]),
            (f'"{labels[0]}"', math.log(0.9), listed),
            (tail, 0.0, [{"token": tail, "logprob": 0.0}]),
        )
    ]


def more_than(most):
    return lambda body: body.get("top_logprobs", 0) > most


def has(key):
    return lambda body: key in body


def lengths(body):
    return "maxLength" in json.dumps(body.get("response_format", {}))


def schema(body):
    return body.get("response_format", {}).get("type") == "json_schema"


def system(body):
    return body["messages"][0]["role"] == "system"


THINKING = (
    (has("max_tokens"), 400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
     " 'max_completion_tokens' instead."),
    (has("temperature"), 400, "Unsupported value: 'temperature' does not support 0.0 with this model. Only"
     " the default (1) value is supported."),
    (has("logprobs"), 403, "You are not allowed to request logprobs from this model."),
    (lengths, 400, "Invalid schema for response_format 'answer': In context=('properties', 'rationale'),"
     " 'minLength' is not permitted."),
)  # fmt: skip


def of_ray(words):
    """How Ray Serve LLM 2.60 wraps what the engine refuses."""
    return (
        f"Message: {words} (Request ID: a669894f-45b5-4a4e-a450-5920f2ef5f6d), Internal exception:"
        " ray.llm._internal.serve.core.configs.openai_api_models.OpenAIHTTPException (Request ID:"
        " a669894f-45b5-4a4e-a450-5920f2ef5f6d), original exception: "
    )


# as it came from Ray 2.60
RAY_CARD = {
    "id": "tiny", "object": "model", "owned_by": "organization-owner", "permission": [],
    "metadata": {"model_id": "tiny", "input_modality": "text", "max_request_context_length": 4096},
}  # fmt: skip
BARE = {"cards": [{"id": "tiny", "object": "model"}], "version": None}

# name -> (how it answers, how it lists its models, whether it gives probabilities, what `agents check` notes)
SERVERS = {
    "vLLM": (answering((more_than(20), 400, "Requested sample logprobs of 64, which is greater than max"
             " allowed: 20")), {}, True, "about an image"),
    "SGLang": (answering(), BARE, True, "about an image"),
    "llama.cpp": (answering(), BARE, True, "about an image"),
    "Ollama": (answering(alternatives=0), BARE, False, "no probability of the label can be read"),
    "LM Studio": (answering(alternatives=0), {**BARE, "unknown": {"error": "Unexpected endpoint"}}, False,
                  "no probability of the label can be read"),
    "TGI": (answering((more_than(5), 422, "Input validation error: `top_logprobs` must be >= 0 and <= 5"),
            alternatives=5), BARE, True, "5 alternatives of a token at most"),
    "Together": (answering(alternatives=0), {**BARE, "bare": True}, False, "no probability of the label"),
    "Fireworks": (answering((more_than(5), 400, "top_logprobs: must be at most 5"), alternatives=5), BARE,
                  True, "5 alternatives of a token at most"),
    "OpenAI": (answering((more_than(20), 400, "Invalid 'top_logprobs': must be between 0 and 20")), BARE,
               True, "about an image"),
    "OpenAI, a model that thinks": (answering(*THINKING), BARE, False, "no log-probabilities"),
    "Azure": (answering(), {"cards": [card("gpt-base")], "version": None, "named": True}, True,
              "about an image"),
    "LiteLLM": (answering((has("logprobs"), 400, "litellm.UnsupportedParamsError: does not support"
                " parameters: ['logprobs', 'top_logprobs']")), BARE, False, "no log-probabilities"),
    "Ray Serve LLM": (answering((more_than(20), 400, of_ray("Requested sample logprobs of 64, which is"
                      " greater than max allowed: 20 (parameter=logprobs, value=64)"))),
                      {**BARE, "cards": [RAY_CARD]}, True, "about an image"),
    "no schema": (answering((schema, 400, "response_format of type json_schema is not supported")), BARE,
                  True, "no schema: answers are in JSON"),
    "nothing at all": (answering((has("response_format"), 400, "unknown field response_format"),
                       (has("seed"), 422, "extra fields not permitted: seed"), (system, 400,
                       "System role not supported"), alternatives=0, usage=False,
                       wrap=lambda text: f"Sure!\n```json\n{text}\n```"), BARE, False, "free text"),
    "thoughts apart": (answering(thoughts="Let me see."), BARE, True, "set vlm.thinking_tokens"),
    "thoughts that the template began": (answering(thoughts="Let me see.", apart=False), BARE, True,
                                         "set vlm.thinking_tokens"),
}  # fmt: skip


class Lone(ChatStub):
    """A stub that lists its models as a server does that is not vLLM."""

    def __init__(self, usual, *, bare=False, unknown=None, named=False, **listed):
        super().__init__(usual=usual, **listed)
        self.bare, self.unknown, self.model = bare, unknown, "tiny" if named else ""

    def _get(self, path):
        if path == "/v1/models" and self.bare:
            return response(200, self.cards)
        if path not in ("/v1/models", "/version") and self.unknown is not None:
            return response(200, self.unknown)
        if path == "/version" and self.unknown is not None:
            return response(200, self.unknown)
        return super()._get(path)


def judged(stub, folder):
    """The verdicts of a round on two posts."""
    client = ChatClient([stub.url], model=stub.model, backoff=0.001)
    manner = Manner(thinking_tokens=2000)
    runner = Runner(
        client, ResponseCache(folder / "a.sqlite"), run="r", opener=lambda path, side: None, manner=manner
    )
    panel = JudgePanel(runner, VLMAgent(JudgePrompts(BRIEF), PROTOCOLS["cross_review"]))
    posts = [Candidate(PostStub(f"p{i}", f"words {i}"), "rude", 0.9) for i in range(3)]
    try:
        return panel.verify(posts)
    finally:
        panel.close()


@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_passes_the_check_and_a_round(name, tmp_path):
    behave, listed, probable, noted = SERVERS[name]
    stub = await Lone(behave, **listed).start()
    checks = await asyncio.to_thread(lambda: list(check_server(stub.url, model=stub.model)))
    asked = len(stub.received)
    verdicts = await asyncio.to_thread(judged, stub, tmp_path)
    calls, health = len(stub.received) - asked, stub.gets["/health"]
    await stub.stop()
    assert all(check.passed for check in checks), checks
    assert noted in checks[-1].detail
    judgments = [judgment for verdict in verdicts for judgment in verdict.judgments]
    assert {(one.state, one.label) for one in judgments} == {(State.LABEL, "rude")}
    assert all((one.probability is not None) == probable for one in judgments)
    assert health == 0
    # what a server lacks is found out once for all calls: by those that were under way together, at most
    assert 6 <= calls <= 6 * (1 + len(THINKING) + 2)


async def test_the_check_of_a_guard_model_says_how_it_is_asked():
    async def safe(stub, received, writer):
        writer.write(response(200, completion("safe")))

    stub = await Lone(safe, **BARE).start()
    *_, last = await asyncio.to_thread(lambda: list(check_server(stub.url)))
    await stub.stop()
    assert not last.passed
    assert 'give it a role with kind = "guard"' in last.detail


def classified(scores):
    async def behave(stub, received, writer):
        found = {name: score > 0.5 for name, score in scores.items()}
        writer.write(response(200, {"results": [{"categories": found, "category_scores": scores}]}))

    return behave


@pytest.mark.parametrize(
    ("scores", "written", "label"),
    [
        ({"hate": 0.1, "violence": 0.2}, "safe", "harmless"),
        ({"hate": 0.7, "violence": 0.9, "spam": 0.3}, "flagged\nviolence\nhate", "hateful"),
        ({"violence": 0.9}, "flagged\nviolence", "harmful"),
    ],
)
async def test_a_moderation_classifier_is_a_guard(scores, written, label):
    table = {"safe": "harmless", "flagged": "harmful", "hate": "hateful"}
    words = guard_words(("harmless", "harmful", "hateful"), "unsure", table)
    stub = await Lone(classified(scores), **BARE).start()
    client = ModerationClient([stub.url])
    await client.open()
    request = ChatRequest((Message("user", ("some words",)),), None, Sampling(60))
    got = await client.complete(request)
    (received,) = stub.received
    assert (received.path, received.body) == (
        "/v1/moderations", {"model": "tiny", "input": [{"type": "text", "text": "some words"}]},
    )  # fmt: skip
    await client.close()
    await stub.stop()
    answer = parse_answer(got, words)
    assert (got.text, answer.label, answer.probabilities) == (written, label, None)


async def test_what_was_found_out_stays_and_is_told_once(tmp_path):
    behave, listed, *_ = SERVERS["OpenAI, a model that thinks"]
    told = []
    stub = await Lone(behave, **listed).start()
    client = ChatClient([stub.url], on_event=lambda name, figures: told.append((name, figures)))
    await client.open()
    asked = ask('Answer with one of "a", "b"', top_logprobs=12, schema={"properties": {"label": {
        "enum": ["a"], "maxLength": 9}}})  # fmt: skip
    for _ in range(3):
        assert json.loads((await client.complete(asked)).text)["label"] == "a"

    assert len(stub.received) == 3 + 6  # the name, the temperature, the lengths, and 8, 5 and 0
    await client.close()
    await stub.stop()
    (lacks,) = [figures["lacks"] for name, figures in told if name == "lacks"]
    assert "no log-probabilities" in lacks
    assert "temperature" in lacks


async def test_a_refusal_about_something_else_is_one():
    stub = await ChatStub(usual=refuses(400, "This model's maximum context length is 4096 tokens")).start()
    client = ChatClient([stub.url])
    await client.open()
    with pytest.raises(RequestRefusedError, match="maximum context length"):
        await client.complete(ask(top_logprobs=5, schema={"type": "object"}))
    assert len(stub.received) == 1
    await client.close()
    await stub.stop()

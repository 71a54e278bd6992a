"""A model in this process as a backend: who waits for whom, who fails, and what an answer is made of."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from agents.client.base import ChatRequest, Completion, Identity, Message, PromptSize, Sampling, Token, Usage
from agents.client.inprocess import InProcessBackend
from agents.client.vllm_engine import VllmEngine, completion, prompt_size
from agents.errors import CallFailedError, RequestRefusedError, ServerLostError, ServerRefusedError

IDENTITY = Identity("fake", "/models/fake", "", "r", "vllm 0.32.0", 4096)


def asked(text):
    return ChatRequest((Message("user", (text,)),), None, Sampling(max_tokens=8))


class FakeEngine:
    """Answers a request after as many steps as its text says; each step waits for `go`."""

    def __init__(self):
        self.go = threading.Semaphore(0)
        self.stepping = threading.Event()
        self.left, self.batches, self.aborted, self.closed = {}, [], [], False
        self.threads = {threading.get_ident()}

    def identify(self):
        return IDENTITY

    def measure(self, request):
        if request.messages[0].parts[0] == "odd":
            raise RequestRefusedError("odd")
        return PromptSize(7, 3)

    def add(self, key, request):
        text = request.messages[0].parts[0]
        if text == "too long":
            raise RequestRefusedError("the prompt is too long")
        if text == "fatal":
            raise KeyError("the engine is broken")
        self.left[key] = int(text)

    def abort(self, key):
        self.aborted.append(key)
        del self.left[key]

    def step(self):
        self.stepping.set()
        self.go.acquire()
        self.threads.add(threading.get_ident())
        self.batches.append(sorted(self.left))
        self.left = {key: count - 1 for key, count in self.left.items()}
        done = [key for key, count in self.left.items() if count <= 0]
        for key in done:
            del self.left[key]
        return [(key, Completion(str(key), "stop", Usage())) for key in done]

    def close(self):
        self.closed = True


@pytest.fixture
def engine():
    return FakeEngine()


def run(engine, scene):
    """A scene on an event loop, with an open backend that is closed at its end."""

    async def play():
        backend = InProcessBackend("fake", load=lambda: engine)
        assert await backend.open() == IDENTITY
        try:
            await scene(backend)
        finally:
            await backend.close()

    asyncio.run(asyncio.wait_for(play(), 30))
    assert engine.closed


def test_requests_that_arrive_meanwhile_join_those_under_way(engine):
    async def scene(backend):
        slow = asyncio.create_task(backend.complete(asked("3")))
        await asyncio.to_thread(engine.stepping.wait)
        quick = asyncio.create_task(backend.complete(asked("1")))
        await asyncio.sleep(0)  # it is in the queue
        engine.go.release(2)
        assert (await quick).text == "1"
        assert not slow.done()  # nobody waits for the slowest
        engine.go.release()
        assert (await slow).text == "0"

    run(engine, scene)
    assert engine.batches == [[0], [0, 1], [0]]
    assert threading.get_ident() in engine.threads  # where it was made
    assert len(engine.threads) == 2  # and one other that works


def test_the_event_loop_goes_on_while_the_engine_works(engine):
    async def scene(backend):
        answer = asyncio.create_task(backend.complete(asked("1")))
        await asyncio.to_thread(engine.stepping.wait)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not answer.done()
        engine.go.release()
        await answer

    run(engine, scene)


def test_one_that_is_refused_fails_alone(engine):
    engine.go.release(9)

    async def scene(backend):
        texts = ("1", "too long", "2")
        answers = await asyncio.gather(
            *(backend.complete(asked(text)) for text in texts), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [Completion, RequestRefusedError, Completion]
        assert str(answers[1]) == "the prompt is too long"
        assert await backend.measure(asked("anything")) == PromptSize(7, 3)
        with pytest.raises(RequestRefusedError, match="odd"):
            await backend.measure(asked("odd"))

    run(engine, scene)


def test_a_request_that_is_given_up_is_aborted_and_the_others_go_on(engine):
    async def scene(backend):
        first = asyncio.create_task(backend.complete(asked("9")))
        other = asyncio.create_task(backend.complete(asked("3")))
        await asyncio.to_thread(engine.stepping.wait)
        first.cancel()
        await asyncio.wait([first])
        engine.go.release(9)
        await other

    run(engine, scene)
    assert engine.aborted == [0]


def test_a_lost_engine_is_told_to_everyone_then_and_later(engine):
    async def scene(backend):
        tasks = [asyncio.create_task(backend.complete(asked("9")))]
        await asyncio.to_thread(engine.stepping.wait)
        tasks += [asyncio.create_task(backend.complete(asked(text))) for text in ("fatal", "1")]
        await asyncio.sleep(0)  # they are in the queue
        engine.go.release()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [ServerLostError] * 3
        assert len({id(answer) for answer in answers}) == 3
        with pytest.raises(ServerLostError, match="KeyError: 'the engine is broken'"):
            await backend.complete(asked("1"))
        with pytest.raises(ServerLostError):
            await backend.measure(asked("1"))

    run(engine, scene)


def test_closing_ends_requests_under_way(engine):
    async def play():
        backend = InProcessBackend("fake", load=lambda: engine)
        await backend.open()
        waiting = asyncio.create_task(backend.complete(asked("9")))
        await asyncio.to_thread(engine.stepping.wait)
        closing = asyncio.create_task(backend.close())
        await asyncio.sleep(0)
        engine.go.release()
        await closing
        with pytest.raises(CallFailedError, match="closed before"):
            await waiting
        with pytest.raises(CallFailedError, match="closed before"):
            await backend.complete(asked("1"))

    asyncio.run(asyncio.wait_for(play(), 30))
    assert engine.closed


def test_what_prevents_loading_is_told_to_whoever_opens():
    def load():
        raise ServerRefusedError("no such model")

    async def play():
        backend = InProcessBackend("fake", load=load)
        with pytest.raises(ServerRefusedError, match="no such model"):
            await backend.open()
        with pytest.raises(RuntimeError, match="open the backend first"):
            await backend.complete(asked("1"))
        await backend.close()

    asyncio.run(asyncio.wait_for(play(), 30))


def test_it_is_opened_once_and_first(engine):
    async def play():
        backend = InProcessBackend("fake", load=lambda: engine)
        with pytest.raises(RuntimeError, match="open the backend first"):
            await backend.measure(asked("1"))
        await backend.open()
        with pytest.raises(RuntimeError, match="opened once"):
            await backend.open()
        await backend.close()

    asyncio.run(asyncio.wait_for(play(), 30))


def test_a_backend_that_was_never_opened_may_be_closed():
    asyncio.run(InProcessBackend("fake").close())


def test_without_vllm_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(ServerRefusedError, match="selftrain agents serve MODEL"):
        VllmEngine("anything")


def test_an_answer_is_made_of_vllms_output():
    def entry(text, logprob):
        return SimpleNamespace(decoded_token=text, logprob=logprob)

    answer = SimpleNamespace(
        text="no!", finish_reason="stop", token_ids=[5, 8],
        logprobs=[
            {5: entry("no", -1.5), 4: entry("yes", -0.5), 9: entry("{", -9999.0)},
            {8: entry("!", -9999.0), 3: entry("?", -0.1)},
        ],
    )  # fmt: skip
    output = SimpleNamespace(outputs=[answer], num_cached_tokens=128)
    made = completion(output, PromptSize(163, 136), 2.5)
    assert made.text == "no!"
    assert made.finish == "stop"
    assert made.usage == Usage(prompt=163, cached=128, image=136, completion=2)
    assert made.seconds == 2.5
    assert made.tokens == (
        Token("no", -1.5, (("yes", -0.5), ("no", -1.5))),
        Token("!", -9999.0, (("?", -0.1), ("!", -9999.0))),
    )


def test_an_answer_without_log_probabilities():
    answer = SimpleNamespace(text="no", finish_reason="length", token_ids=[5], logprobs=None)
    made = completion(SimpleNamespace(outputs=[answer], num_cached_tokens=None), PromptSize(3, 0), 0.1)
    assert (made.tokens, made.usage, made.finish) == ((), Usage(3, 0, 0, 1), "length")


@pytest.mark.parametrize(
    ("rendered", "size"),
    [
        ({"prompt_token_ids": [1, 2, 3]}, PromptSize(3, 0)),
        ({"prompt_token_ids": [1] * 9, "mm_placeholders": {"image": [SimpleNamespace(length=4)] * 2}},
         PromptSize(9, 8)),
        ({"prompt_token_ids": [1] * 9, "mm_placeholders": {"video": [SimpleNamespace(length=4)]}},
         PromptSize(9, 0)),
    ],
)  # fmt: skip
def test_the_size_of_a_rendered_prompt(rendered, size):
    assert prompt_size(rendered) == size

"""A model in this process as a backend: no server, no port, for those who have vLLM where selftrain runs.

The engine works in a thread of its own, so that the event loop goes on. Requests that arrive while it is busy
join those under way at its next token, as on a server: none waits for the slowest of a batch.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from agents.client.base import ChatRequest, Completion, Identity, PromptSize
from agents.errors import CallFailedError, ChatError, RequestRefusedError, ServerLostError


class Engine(Protocol):
    """What generates; `vllm_engine.VllmEngine` is one. All of it is called in one thread.

    `measure` and `add` raise RequestRefusedError for a request that has no answer; whatever else is raised
    means that the engine is lost.
    """

    def identify(self) -> Identity:
        """Which model answers."""
        ...

    def measure(self, request: ChatRequest) -> PromptSize:
        """Tokens of a prompt."""
        ...

    def add(self, key: int, request: ChatRequest) -> None:
        """Take a request."""
        ...

    def abort(self, key: int) -> None:
        """Give a request up."""
        ...

    def step(self) -> list[tuple[int, Completion]]:
        """Go on with all requests a little; the answers that are finished."""
        ...

    def close(self) -> None:
        """Free its memory."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    kind: Literal["complete", "measure"]
    request: ChatRequest
    answer: Future[Any] = field(default_factory=Future)


class InProcessBackend:
    """A `Backend` whose model is loaded here.

    Args:
        model: A folder, or a name on the Hugging Face hub.
        revision: Of the weights, as the user knows it; "": the newest, and a fingerprint of a folder.
        context: Most tokens of prompt and answer together; None: what the model states.
        images: Most images of one prompt.
        options: Further arguments of `vllm.LLM`, for instance `gpu_memory_utilization`.
        load: Makes the engine, in its thread; None: `VllmEngine` with the arguments above.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str = "",
        context: int | None = None,
        images: int = 16,
        options: Mapping[str, Any] | None = None,
        load: Callable[[], Engine] | None = None,
    ) -> None:
        def load_vllm() -> Engine:
            from agents.client.vllm_engine import VllmEngine

            return VllmEngine(model, revision=revision, context=context, images=images, options=options)

        self._load = load or load_vllm
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._identity: Future[Identity] = Future()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._closed = False

    async def open(self) -> Identity:
        """Load the model, which takes from half a minute to many.

        Raises:
            ServerRefusedError: vLLM is not installed, or cannot load it.
        """
        if self._thread.ident is not None:
            raise RuntimeError("a backend is opened once")
        self._thread.start()
        # shielded: the thread goes on loading whether or not anybody waits
        return await asyncio.shield(asyncio.wrap_future(self._identity))

    async def complete(self, request: ChatRequest) -> Completion:
        """The answer to one request. Raises as `Backend.complete` says."""
        answer: Completion = await self._ask(_Job("complete", request))
        return answer

    async def measure(self, request: ChatRequest) -> PromptSize:
        """The size of a prompt, by the model's own tokenizer. Raises as `complete`."""
        size: PromptSize = await self._ask(_Job("measure", request))
        return size

    async def close(self) -> None:
        """Free the model, once it is loaded; requests under way end with CallFailedError."""
        self._closed = True
        if self._thread.ident is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)

    async def _ask(self, job: _Job) -> Any:  # noqa: ANN401 -- whatever the job answers
        if not self._identity.done() or self._identity.exception() is not None:
            raise RuntimeError("open the backend first")
        if self._closed:
            raise CallFailedError(_CLOSED)
        self._jobs.put(job)
        return await asyncio.wrap_future(job.answer)

    def _work(self) -> None:
        """The thread: load, answer until closed, free."""
        try:
            engine = self._load()
            self._identity.set_result(engine.identify())
        except BaseException as error:
            self._identity.set_exception(error)
            return
        under_way: dict[int, _Job] = {}
        why: ChatError = CallFailedError(_CLOSED)
        try:
            self._serve(engine, under_way)
        except Exception as error:
            why = _lost(error)
        try:
            for job in under_way.values():
                _fail(job, why)
            engine.close()
        finally:
            self._refuse_the_rest(why)

    def _serve(self, engine: Engine, under_way: dict[int, _Job]) -> None:
        """Answer until `close` asks for the end."""
        keys = itertools.count()
        while True:
            for job in self._arrived(wait=not under_way):
                if job is None:
                    return
                _take(engine, job, next(keys), under_way)
            for key in [key for key, job in under_way.items() if job.answer.cancelled()]:
                engine.abort(key)
                del under_way[key]
            for key, completion in engine.step() if under_way else ():
                _answer(under_way.pop(key), completion)

    def _arrived(self, *, wait: bool) -> Iterator[_Job | None]:
        """What has arrived, one by one; at least one if asked to wait."""
        if wait:
            yield self._jobs.get()
        while not self._jobs.empty():  # nobody else takes from it
            yield self._jobs.get()

    def _refuse_the_rest(self, why: ChatError) -> None:
        """Whoever asks after the end is told at once, until `close`."""
        while not self._closed or not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                _fail(job, why)


_CLOSED = "the backend was closed before this request was answered"


def _take(engine: Engine, job: _Job, key: int, under_way: dict[int, _Job]) -> None:
    if job.answer.cancelled():
        return
    try:
        if job.kind == "measure":
            _answer(job, engine.measure(job.request))
        else:
            engine.add(key, job.request)
            under_way[key] = job
    except RequestRefusedError as error:
        _fail(job, error)
    except Exception as error:
        _fail(job, _lost(error))
        raise


def _answer(job: _Job, value: object) -> None:
    if job.answer.set_running_or_notify_cancel():
        job.answer.set_result(value)


def _fail(job: _Job, why: ChatError) -> None:
    if job.answer.set_running_or_notify_cancel():
        # an error of its own for everyone: each is raised, and gathers a traceback, in another place
        job.answer.set_exception(type(why)(*why.args))


def _lost(error: Exception) -> ServerLostError:
    return ServerLostError(f"the engine in this process failed: {type(error).__name__}: {error}")

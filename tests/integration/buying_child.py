"""A process that asks about posts through answers shared with others: `buying_child.py URL CALLS CAP KILL`.

Every call to its model is a line of the file CALLS before it is answered; with KILL it kills itself in that
call. At the end it prints what became of its posts.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from vlm_helpers import MemoryBackend, PostStub, opener, said

from agents.ask.answer_schema import AnswerSchema
from agents.ask.metering import Manner, PostPrompt
from agents.ask.postgres_cache import PostgresCache
from agents.ask.runner import Runner
from agents.client.base import Message
from agents.errors import TokenCapError

POSTS = 60


class Counted(MemoryBackend):
    """Tells everybody what it is asked."""

    def __init__(self, calls, kill):
        super().__init__(lambda request: said("rude"))
        self.calls, self.kill, self.begun = calls, kill, 0

    async def complete(self, request):
        with self.calls.open("a") as file:
            file.write(request.affinity + "\n")
        self.begun += 1
        if self.begun == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0.005)
        return await super().complete(request)


def main(url, calls, cap, kill):
    cache = PostgresCache(url)
    backend = Counted(Path(calls), int(kill) if kill else None)
    runner = Runner(
        backend, cache, run="run", opener=opener, width=6, token_cap=int(cap) if cap else None,
        manner=Manner(answer_tokens=20),  # as many as its answers have: what is held back is what it costs
    )  # fmt: skip

    async def work(post):
        asked = Message("user", (post.text,))
        prompt = PostPrompt(
            await runner.prepare(post), (asked,), AnswerSchema(("rude", "kind"), "unsure"), "judge"
        )
        return (await runner.ask(prompt)).answer.label

    end = "done"
    try:
        found = runner.map("posts", [PostStub(f"p{i}", f"words {i}") for i in range(POSTS)], work)
        assert found == ["rude"] * POSTS
    except TokenCapError as error:
        end = str(error)
    usage = runner.usage()
    print(json.dumps({"end": end, "calls": usage.calls, "stored": usage.stored}))
    runner.close()
    cache.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

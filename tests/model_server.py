"""A model server in a thread: it answers every question in its schema, always alike, and counts them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from hashlib import sha256

from chat_stub import ChatStub, answers, completion, response


def told(body):
    """An answer of the schema of a request; which label, its prompt alone decides."""
    schema = body["response_format"]["json_schema"]["schema"]
    digest = sha256(json.dumps(body["messages"]).encode()).digest()
    record = {}
    for name, kind in schema["properties"].items():
        # the last answer of an enumeration is that of whoever cannot tell
        offered = kind.get("enum", ())[:-1] or kind.get("enum")
        record[name] = offered[digest[0] % len(offered)] if offered else f"because of {digest.hex()[:12]}"
    text = json.dumps(record)
    label = json.dumps(record["label"])
    head, tail = text.rsplit(label, 1)
    alternatives = [(json.dumps(one)[:-1], -0.3 if one == record["label"] else -2.0)
                    for one in schema["properties"]["label"]["enum"]]  # fmt: skip
    content = [
        {"token": token, "logprob": -0.3, "top_logprobs": [{"token": t, "logprob": p} for t, p in others]}
        for token, others in ((head, [(head, -0.3)]), (label, alternatives), (tail, [(tail, -0.3)]))
        if token
    ]
    return completion(text, logprobs={"content": content})


async def judges(stub, received, writer):
    if received.path == "/tokenize":
        return await answers(stub, received, writer)
    await asyncio.sleep(0.004)
    writer.write(response(200, told(received.body)))
    return True


class ModelServer(threading.Thread):
    """One server; `bodies` are the questions that came, in order, from all starts of a command."""

    def __init__(self):
        super().__init__(daemon=True)
        self.loop, self.stub = asyncio.new_event_loop(), ChatStub(usual=judges)
        self.start()
        asyncio.run_coroutine_threadsafe(self.stub.start(), self.loop).result(10)

    def run(self):
        self.loop.run_forever()

    @property
    def bodies(self):
        return [json.dumps(one.body) for one in self.stub.received if one.path != "/tokenize"]

    def forget(self):
        self.stub.received.clear()

    def stop(self):
        asyncio.run_coroutine_threadsafe(self.stub.stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.join(10)


def paid_twice(bodies, interruptions, at_once, once):
    """How many questions were asked more often than `once` says without having been in flight.

    Args:
        bodies: All questions, in order.
        interruptions: How many had come when a start was interrupted.
        at_once: Questions that may be under way at any time: the last so many before an interruption.
        once: Question -> how often an undisturbed command asks it.
    """
    in_flight = Counter(body for end in interruptions for body in bodies[max(0, end - at_once) : end])
    return sum(max(0, count - once[body] - in_flight[body]) for body, count in Counter(bodies).items())

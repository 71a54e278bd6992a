"""A model in memory: what it says is decided by a function of the request, and every call is counted."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from agents.ask.cache import Keeper, ResponseCache
from agents.ask.judge import JudgePanel, JudgePrompts, VLMAgent
from agents.ask.metering import Manner
from agents.ask.prompt_files import Brief
from agents.ask.protocols import PROTOCOLS, alone
from agents.ask.runner import Runner
from agents.client.base import ChatRequest, Completion, Identity, Picture, PromptSize, Token, Usage

CLASSES = {"rude": "insults somebody", "kind": "everything else"}
BRIEF = Brief("manners", "Rude posts insult. $5 fine.", CLASSES)
IDENTITY = Identity("model-a", "org/model-a", "", "rev1", "vllm 0.32.0", 4096)


@dataclass(frozen=True)
class PostStub:
    id: str
    text: str = ""
    images: tuple[Path, ...] = ()
    label: str | None = None


def words(request: ChatRequest, message: int = -1) -> str:
    """The text parts of one message, joined."""
    return "\n".join(p for p in request.messages[message].parts if isinstance(p, str))


def role_of(request: ChatRequest) -> str:
    """Who is asked."""
    ending = request.messages[-1].parts[-1].strip()
    for role in ("Reviewer", "User"):
        if ending.startswith(f"You are the {role}."):
            return role.lower()
    return "judge"


def pictures_of(request: ChatRequest) -> list[Picture]:
    return [p for m in request.messages for p in m.parts if isinstance(p, Picture)]


def said(label: str, share: float = 0.9, rationale: str = "because it says so", **more) -> Completion:
    """A whole answer that gives `label` the probability `share`, the rest to the other class."""
    record = json.dumps({"rationale": rationale, "label": label}, separators=(",", ":"))
    head, tail = record.rsplit(f'"{label}"', 1)
    other = next((name for name in CLASSES if name != label), "kind")
    alternatives = ((f'"{label}', math.log(share)), (f'"{other}', math.log(max(1 - share, 1e-9))))
    tokens = (
        Token(head, 0.0, ((head, 0.0),)),
        Token(f'"{label}', math.log(share), alternatives),
        Token('"' + tail, 0.0, (('"' + tail, 0.0),)),
    )
    return Completion(record, "stop", Usage(100, 40, 10, 20), tokens, seconds=0.5, **more)


def raw(text: str, finish: str = "stop", **more) -> Completion:
    return Completion(text, finish, Usage(100, 0, 0, 7), **more)


def respelt(completion: Completion, request: ChatRequest) -> Completion:
    """A whole answer with its labels written as the schema of the request has them."""
    offered = ((request.schema or {}).get("properties") or {}).get("label", {}).get("enum", ())
    written = {value[2:]: value for value in offered if value[1:2] == " "}

    def spell(text: str) -> str:
        for name, value in written.items():
            text = re.sub(rf'"{re.escape(name)}(?="|$)', f'"{value}', text)
        return text

    tokens = tuple(
        Token(spell(one.text), one.logprob, tuple((spell(t), p) for t, p in one.alternatives))
        for one in completion.tokens
    )
    return replace(completion, text=spell(completion.text), tokens=tokens)


@dataclass
class MemoryBackend:
    """Implements `Backend`; `answer` may return a completion or raise."""

    answer: Callable[[ChatRequest], Completion]
    identity: Identity = IDENTITY
    requests: list[ChatRequest] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    most_at_once: int = 0
    under_way: int = 0
    gate: asyncio.Event | None = None

    async def open(self) -> Identity:
        self.opened += 1
        return self.identity

    async def complete(self, request: ChatRequest) -> Completion:
        self.requests.append(request)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            await asyncio.sleep(0)
            return respelt(self.answer(request), request)
        finally:
            self.under_way -= 1

    def width(self) -> int:
        return 64

    async def measure(self, request: ChatRequest) -> PromptSize:
        text = sum(len(words(request, i)) for i in range(len(request.messages))) // 4
        image = 64 * len(pictures_of(request))
        return PromptSize(text + image, image)

    async def close(self) -> None:
        self.closed += 1


def opener(path: Path, side: int) -> Image.Image:
    return Image.open(path).convert("RGB")


def make_panel(
    backend: MemoryBackend,
    folder: Path,
    protocol: str = "cross_review",
    *,
    run: str = "run-1",
    brief: Brief = BRIEF,
    asking: Mapping | None = None,
    always_cross_review: bool = False,
    settings: Mapping | None = None,
    attempts: int = 3,
    keyed: tuple = (),
    lone: bool = False,
    **options,
) -> JudgePanel:
    chosen = alone(PROTOCOLS[protocol]) if lone else PROTOCOLS[protocol]
    agent = VLMAgent(JudgePrompts(brief), chosen, **(asking or {}))
    cache = ResponseCache(folder / "answers.sqlite")
    manner = Manner(attempts=attempts, keyed=keyed)
    runner = Runner(backend, cache, run=run, opener=opener, manner=manner, **options)
    return JudgePanel(runner, agent, always_cross_review=always_cross_review, settings=settings or {})


def labelled_posts(n: int = 8) -> list[PostStub]:
    """Half of each class, its first word the class."""
    names = list(CLASSES)
    return [PostStub(f"l{i}", f"{names[i % 2]} words {i}", label=names[i % 2]) for i in range(n)]


def by_first_word(request: ChatRequest) -> Completion:
    """The class that the post's first word names."""
    text = words(request).split("> ", 1)[1]
    return said("rude" if text.startswith("rude") else "kind")


def keep_for_nobody(store, rows):
    """Have rows kept by askers that are cancelled before the group of their rows begins."""

    async def scenario():
        keeper = Keeper(store)
        tasks = [asyncio.create_task(keeper.keep(row)) for row in rows]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()

    asyncio.run(scenario())

"""A model in memory that annotates and criticizes posts which say their own label."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from vlm_helpers import respelt

from agents.ask.prompt_files import Brief
from agents.client.base import ChatRequest, Completion, Identity, Token, Usage

CLASSES = {"rude": "insults", "kind": "friendly", "odd": "else"}
BRIEF = Brief("manners", "Rude posts insult.", CLASSES)
NAMES = list(CLASSES)


@dataclass
class Model:
    """Knows the label but for every `slip`-th post; as a critic it is as sure as `sure` says."""

    name: str
    slip: int
    sure: float = 0.9
    tokens: bool = True
    asked: list[ChatRequest] = field(default_factory=list)
    closed: int = 0

    async def open(self) -> Identity:
        return Identity(self.name, f"org/{self.name}", "", "rev", "vllm 0.32.0", 4096)

    async def complete(self, request: ChatRequest) -> Completion:
        self.asked.append(request)
        asked = "".join(part for part in request.messages[-1].parts if isinstance(part, str))
        number, truth = int(asked.split("number ")[1].split()[0]), asked.split(" is ")[1].split()[0]
        wrong = NAMES[(NAMES.index(truth) + 1) % 3]
        if "Which class" in asked:
            label = wrong if number % self.slip == 0 else truth
            shares = {label: 0.8, truth if label == wrong else wrong: 0.2}
            return respelt(self._answer({"label": label}, shares, asked), request)
        criticized = asked.split('the class "')[1].split('"')[0]
        says_wrong = self.sure if criticized != truth else 1 - self.sure
        answer = self._answer({"label": "yes"}, {"yes": says_wrong, "no": 1 - says_wrong}, asked)
        return respelt(answer, request)

    def _answer(self, record, shares, asked):
        if '"rationale"' in asked:
            record = {"rationale": "because"} | record
        text = json.dumps(record)
        head, tail = text.rsplit(f'"{record["label"]}"', 1)
        alternatives = tuple((f'"{name}"', math.log(share)) for name, share in shares.items())
        chosen = Token(f'"{record["label"]}"', math.log(shares[record["label"]]), alternatives)
        tokens = (Token(head, -1.0, ()), chosen, Token(tail, 0.0, ())) if self.tokens else ()
        return Completion(text, "stop", Usage(100, 0, 0, 10), tokens)

    def width(self) -> int:
        return 64

    async def measure(self, request):
        raise NotImplementedError

    async def close(self):
        self.closed += 1

"""The form of an answer: its JSON schema, and the state, label and rationale read out of what came back.

A label's probability is read from the log-probabilities of its tokens, never from a number that the model
writes. A class name may be several tokens, and several names may begin alike, so the tokens are walked like
a tree: at each one, the alternatives that leave the chosen name give their share to the names they lead to.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agents.client.base import Completion, Token
from agents.judgment import State

FormName: TypeAlias = Literal["reason_first", "label_first", "label_only", "cot"]

# compressed below this share of its length, a text says the same thing again and again (prose: .5 and more)
_LOOP_SHARE = 0.3
_LOOP_LENGTH = 80
_REPEATED = re.compile(r"(.{4,60}?)\1{3,}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer looks like.

    Attributes:
        classes: Class names, two or more.
        unsure: The answer of an agent that cannot tell.
        name: Which form; the file ``form.NAME.txt`` words it.
        rationale_chars: Most characters of a rationale; ``cot`` has three times as many.
    """

    classes: tuple[str, ...]
    unsure: str
    name: FormName = "reason_first"
    rationale_chars: int = 240

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.classes, self.unsure)

    @property
    def limit(self) -> int:
        """Most characters of the rationale; 0: none is asked for."""
        factor = {"reason_first": 1, "label_first": 1, "label_only": 0, "cot": 3}[self.name]
        return self.rationale_chars * factor

    @property
    def max_tokens(self) -> int:
        """Enough for the longest rationale in a script of a token a character or two, and the label."""
        return 60 + self.limit // 2

    def schema(self) -> dict[str, Any]:
        """JSON schema; the order of its properties is the order in which they are written."""
        label = {"enum": list(self.labels)}
        rationale = {"type": "string", "minLength": 1, "maxLength": max(self.limit, 1)}
        properties: dict[str, Any] = {"rationale": rationale, "label": label}
        if self.name == "label_first":
            properties = {"label": label, "rationale": rationale}
        elif self.name == "label_only":
            properties = {"label": label}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent's completion says.

    Attributes:
        state: LABEL, ABSTAIN or FAILED.
        label: A class name; None unless state is LABEL.
        rationale: As written; empty when none was asked for, or none could be read.
        probabilities: Class name -> share of the probability, adding up to 1, before calibration; None when
            no log-probabilities came back or the agent is all unsure.
        fault: Why it failed; empty otherwise.
    """

    state: State
    label: str | None = None
    rationale: str = ""
    probabilities: Mapping[str, float] | None = None
    fault: str = ""


def read_answer(completion: Completion, form: Form) -> Answer:
    """The answer in a completion; anything but a whole answer in the form asked for is FAILED."""
    fault = _unfinished(completion)
    if fault:
        return _failed(fault)
    try:
        record = json.loads(completion.text)
    except ValueError:
        return _failed("not JSON")
    fault = _malformed(record, form)
    if fault:
        return _failed(fault)
    label, rationale = record["label"], _marked(record.get("rationale", "").strip(), form)
    shares = label_probs(completion.tokens, form)
    if label == form.unsure:
        return Answer(State.ABSTAIN, None, rationale, shares)
    return Answer(State.LABEL, label, rationale, shares)


def _unfinished(completion: Completion) -> str:
    """Why a completion holds no whole answer, or nothing."""
    if completion.refusal or completion.finish == "content_filter":
        return f"refused: {completion.refusal or 'stopped by a content filter'}"
    if completion.finish == "length":
        return f"cut off after {completion.usage.completion} tokens"
    return "" if completion.text.strip() else "empty"


def _marked(rationale: str, form: Form) -> str:
    """The rationale, with a mark where the schema's limit may have ended it in the middle."""
    return f"{rationale}…" if form.limit and len(rationale) >= form.limit else rationale


def _malformed(record: object, form: Form) -> str:
    """What is wrong with a record, or nothing."""
    expected = set(form.schema()["required"])
    if not isinstance(record, dict) or set(record) != expected:
        return f"not an object with {' and '.join(sorted(expected))} alone"
    if record["label"] not in form.labels:
        return "a label that was not offered"
    rationale = record.get("rationale", "")
    if form.limit and (not isinstance(rationale, str) or not rationale.strip()):
        return "no rationale"
    return "a rationale that repeats itself" if loops(rationale) else ""


def _failed(fault: str) -> Answer:
    return Answer(State.FAILED, fault=fault)


def loops(text: str) -> bool:
    """Whether a text says the same thing over and over."""
    if _REPEATED.search(text):
        return True
    data = text.encode("utf-8", "replace")
    return len(data) >= _LOOP_LENGTH and len(zlib.compress(data, 9)) < _LOOP_SHARE * len(data)


def label_probs(tokens: Sequence[Token], form: Form) -> dict[str, float] | None:
    """Class name -> share, from the tokens that spell the label; None when they tell nothing.

    What falls to `unsure` is left out and the rest scaled up to 1.
    """
    shares = _walk(tokens, _start_of_label(tokens, form), form.labels)
    known = sum(shares.get(name, 0.0) for name in form.classes)
    if known <= 0.0:
        return None
    return {name: shares.get(name, 0.0) / known for name in form.classes}


def _start_of_label(tokens: Sequence[Token], form: Form) -> int | None:
    """Character at which the label's value begins in the joined text of `tokens`.

    A rationale may quote the key too, but inside a JSON string its quotes are escaped: the last unescaped
    one is the key, or the first where the label comes first.
    """
    found = list(re.finditer(r'(?<!\\)"label"\s*:\s*"', "".join(token.text for token in tokens)))
    if not found:
        return None
    return (found[0] if form.name == "label_first" else found[-1]).end()


def _walk(tokens: Sequence[Token], start: int | None, names: Sequence[str]) -> dict[str, float]:
    """Name -> probability, following the written tokens from character `start` to the closing quote."""
    shares = dict.fromkeys(names, 0.0)
    # what json.dumps writes for a name, and its end
    spelt = {name: json.dumps(name, ensure_ascii=False)[1:] for name in names}
    written, mass, position = "", 1.0, 0
    for token in tokens:
        begin, position = position, position + len(token.text)
        if start is None or position <= start:
            continue
        # the first token of the value may begin before it, with the opening quote
        skipped = max(start - begin, 0)
        prefix = token.text[:skipped]
        weights = _leading_to(token, prefix, skipped, written, spelt)
        total = sum(weight for weight, _ in weights.values())
        if total <= 0.0:
            return shares
        written += token.text[skipped:]
        for text, (weight, led) in weights.items():
            if text != token.text:
                for name in led:
                    shares[name] += mass * weight / total / len(led)
        mass *= weights[token.text][0] / total if token.text in weights else 0.0
        left = [
            name for name, whole in spelt.items() if whole.startswith(written) or written.startswith(whole)
        ]
        if len(left) <= 1 or any(written.startswith(spelt[name]) for name in left):
            for name in left:
                shares[name] += mass / len(left)
            return shares
    return shares


def _leading_to(
    token: Token, prefix: str, skipped: int, written: str, spelt: Mapping[str, str]
) -> dict[str, tuple[float, list[str]]]:
    """Alternatives at one place that can begin or go on with a name: text -> (probability, names)."""
    found: dict[str, tuple[float, list[str]]] = {}
    for text, logprob in dict([*token.alternatives, (token.text, token.logprob)]).items():
        if text[:skipped] != prefix:
            continue
        so_far = written + text[skipped:]
        led = [n for n, whole in spelt.items() if whole.startswith(so_far) or so_far.startswith(whole)]
        if led:
            found[text] = (math.exp(logprob), led)
    return found

"""The schema of an answer, and the state, label and rationale parsed out of what came back.

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
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from agents.client.base import Completion, Token
from agents.judgment import State

AnswerForm: TypeAlias = Literal["reason_first", "label_first", "label_only", "cot"]

# compressed below this share of its length, a text says the same thing again and again (prose: .5 and more)
_LOOP_SHARE = 0.3
_LOOP_LENGTH = 80
_REPEATED = re.compile(r"(.{4,60}?)\1{3,}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """What an answer looks like."""

    classes: tuple[str, ...]  # class names, two or more
    unsure: str  # the answer of an agent that cannot tell
    form: AnswerForm = "reason_first"  # what is written in which order; the file ``form.NAME.txt`` words it
    rationale_chars: int = 240  # most characters of a rationale; ``cot`` has three times as many

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.classes, self.unsure)

    @property
    def limit(self) -> int:
        """Most characters of the rationale; 0: none is asked for."""
        factor = {"reason_first": 1, "label_first": 1, "label_only": 0, "cot": 3}[self.form]
        return self.rationale_chars * factor

    @property
    def max_tokens(self) -> int:
        """Tokens enough for the longest rationale, at two characters a token, and for the label."""
        return 60 + self.limit // 2

    def to_json(self) -> dict[str, Any]:
        """Return the JSON schema; the order of its properties is the order in which they are written."""
        label = {"enum": list(self.labels)}
        rationale = {"type": "string", "minLength": 1, "maxLength": max(self.limit, 1)}
        properties: dict[str, Any] = {"rationale": rationale, "label": label}
        if self.form == "label_first":
            properties = {"label": label, "rationale": rationale}
        elif self.form == "label_only":
            properties = {"label": label}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """What a completion says."""

    state: State  # LABEL, ABSTAIN or FAILED
    label: str | None = None  # a class name; None unless state is LABEL
    rationale: str = ""  # as written; empty when none was asked for, or none could be read
    # class name -> probability, adding up to 1, before calibration; None when no log-probabilities came back
    # or the agent is all unsure
    probabilities: Mapping[str, float] | None = None
    perplexity: float | None = None  # of the rationale, >= 1; None without rationale or log-probabilities
    fault: str = ""  # why it failed; empty otherwise

    @classmethod
    def failed(cls, fault: str) -> ParsedAnswer:
        """Return the answer that is none, with its reason."""
        return cls(State.FAILED, fault=fault)

    def to_json(self) -> dict[str, Any]:
        """Return the record that the cache keeps."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ParsedAnswer:
        """Return the answer of a record. Older records of judges hold no perplexity."""
        return cls(
            State(record["state"]),
            record["label"],
            record["rationale"],
            record["probabilities"],
            record.get("perplexity"),
            record["fault"],
        )


def parse_answer(completion: Completion, schema: AnswerSchema) -> ParsedAnswer:
    """Parse the answer in a completion; anything but a whole answer of the schema is FAILED."""
    if fault := _unfinished(completion):
        return ParsedAnswer.failed(fault)
    try:
        record = json.loads(completion.text)
    except ValueError:
        return ParsedAnswer.failed("not JSON")
    if fault := _malformed(record, schema):
        return ParsedAnswer.failed(fault)
    label, rationale = record["label"], record.get("rationale", "").strip()
    if schema.limit and len(rationale) >= schema.limit:
        rationale += "…"  # the schema's limit may have ended it in the middle
    probabilities, perplexed = label_probs(completion.tokens, schema), perplexity(completion.tokens)
    if label == schema.unsure:
        return ParsedAnswer(State.ABSTAIN, None, rationale, probabilities, perplexed)
    return ParsedAnswer(State.LABEL, label, rationale, probabilities, perplexed)


def _unfinished(completion: Completion) -> str:
    """Return why a completion holds no whole answer, or nothing."""
    if completion.refusal or completion.finish == "content_filter":
        return f"refused: {completion.refusal or 'stopped by a content filter'}"
    if completion.finish == "length":
        return f"cut off after {completion.usage.completion} tokens"
    return "" if completion.text.strip() else "empty"


def _malformed(record: object, schema: AnswerSchema) -> str:
    """Return what is wrong with a record, or nothing."""
    expected = set(schema.to_json()["required"])
    if not isinstance(record, dict) or set(record) != expected:
        return f"not an object with {' and '.join(sorted(expected))} alone"
    if record["label"] not in schema.labels:
        return "a label that was not offered"
    rationale = record.get("rationale", "")
    if schema.limit and (not isinstance(rationale, str) or not rationale.strip()):
        return "no rationale"
    return "a rationale that repeats itself" if loops(rationale) else ""


def loops(text: str) -> bool:
    """Return whether a text says the same thing over and over."""
    if _REPEATED.search(text):
        return True
    data = text.encode("utf-8", "replace")
    return len(data) >= _LOOP_LENGTH and len(zlib.compress(data, 9)) < _LOOP_SHARE * len(data)


def perplexity(tokens: Sequence[Token]) -> float | None:
    """Return exp(- mean log-probability) of the tokens that write the rationale, if there are any."""
    text = "".join(token.text for token in tokens)
    found = re.search(r'"rationale"\s*:\s*"((?:[^"\\]|\\.)*)', text, re.DOTALL)
    if found is None:
        return None
    begin, end = found.span(1)
    position, logprobs = 0, []
    for token in tokens:
        # a token belongs to the reasons when it begins in them; the one that opens the quotation does not
        if begin <= position < end:
            logprobs.append(token.logprob)
        position += len(token.text)
    return math.exp(-sum(logprobs) / len(logprobs)) if logprobs else None


def label_probs(tokens: Sequence[Token], schema: AnswerSchema) -> dict[str, float] | None:
    """Return class name -> probability, read from the tokens of the label; None when they tell nothing.

    What falls to `unsure` is left out and the rest scaled up to 1.
    """
    probs = _walk(tokens, _start_of_label(tokens, schema), schema.labels)
    known = sum(probs.get(name, 0.0) for name in schema.classes)
    if known <= 0.0:
        return None
    return {name: probs.get(name, 0.0) / known for name in schema.classes}


def _start_of_label(tokens: Sequence[Token], schema: AnswerSchema) -> int | None:
    """Return the character at which the label's value begins in the joined text of `tokens`.

    A rationale may quote the key too, but inside a JSON string its quotes are escaped: the last unescaped
    one is the key, or the first where the label comes first.
    """
    found = list(re.finditer(r'(?<!\\)"label"\s*:\s*"', "".join(token.text for token in tokens)))
    if not found:
        return None
    return (found[0] if schema.form == "label_first" else found[-1]).end()


def _walk(tokens: Sequence[Token], start: int | None, names: Sequence[str]) -> dict[str, float]:
    """Return name -> probability, following the tokens from character `start` to the closing quote."""
    probs = dict.fromkeys(names, 0.0)
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
            return probs
        written += token.text[skipped:]
        for text, (weight, led) in weights.items():
            if text != token.text:
                for name in led:
                    probs[name] += mass * weight / total / len(led)
        mass *= weights[token.text][0] / total if token.text in weights else 0.0
        left = [
            name for name, whole in spelt.items() if whole.startswith(written) or written.startswith(whole)
        ]
        if len(left) <= 1 or any(written.startswith(spelt[name]) for name in left):
            for name in left:
                probs[name] += mass / len(left)
            return probs
    return probs


def _leading_to(
    token: Token, prefix: str, skipped: int, written: str, spelt: Mapping[str, str]
) -> dict[str, tuple[float, list[str]]]:
    """Return the alternatives that can begin or go on with a name: text -> (probability, names)."""
    found: dict[str, tuple[float, list[str]]] = {}
    for text, logprob in dict([*token.alternatives, (token.text, token.logprob)]).items():
        if text[:skipped] != prefix:
            continue
        so_far = written + text[skipped:]
        led = [n for n, whole in spelt.items() if whole.startswith(so_far) or so_far.startswith(whole)]
        if led:
            found[text] = (math.exp(logprob), led)
    return found

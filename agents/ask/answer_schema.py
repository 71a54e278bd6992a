"""The schema of an answer, and the state, label and rationale parsed out of what came back.

Anything that is not a whole answer of the schema is FAILED, whoever sent it: a server may ignore the schema,
and a store may be damaged. A label's probability is read from the log-probabilities of its tokens
(`label_probs`), never from a number that the model writes.
"""

from __future__ import annotations

import json
import math
import re
import string
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

from agents.ask.guard import GuardWords
from agents.ask.label_probs import label_probs
from agents.client.base import Completion, Token
from agents.client.dialect import MOST_LOGPROBS
from agents.errors import JudgmentError
from agents.judgment import State

AnswerForm: TypeAlias = Literal["reason_first", "label_first", "label_only", "cot"]

NOT_JSON = "not JSON"
"""The fault of an answer that is something else, such as a guard model's."""
NO_CLAUSE = "none"
"""What an answer names where no clause of the policy decides."""
MOST_GUARD = 400
"""Characters of what a guard wrote that are kept."""
MOST_REASONING = 20_000
"""Characters of a thinking model's thoughts that are kept."""
_MOST_CHARACTERS = 8  # an answer is no longer than so many times what was asked for
# compressed below this share of its length, a text says the same thing again and again (prose: .5 and more)
_LOOP_SHARE = 0.3
_LOOP_LENGTH = 80
# no vocabulary of `runs.bench.agents_labels` joins one of these to the quote before it: however the key is
# cut into tokens, the label's beginning is a token's
_ALONE = "123456789QRUVXZjqryz0"
_CODES = _ALONE + "".join(sorted({*string.ascii_letters} - {*_ALONE}))
_LEAST_LOGPROBS = 8
_REPEATED = re.compile(r"(.{4,60}?)\1{3,}", re.DOTALL)


@dataclass(frozen=True)
class AnswerSchema:
    """What an answer looks like; what follows from it is worked out once, for it is used at every call."""

    classes: tuple[str, ...]  # class names, two or more
    unsure: str  # the answer of an agent that cannot tell
    form: AnswerForm = "reason_first"  # what is written in which order; the file ``form.NAME.txt`` words it
    rationale_chars: int = 240  # most characters of a rationale; ``cot`` has three times as many
    clauses: int = 0  # of the policy, numbered from 1, of which an answer names the one that decides; 0: none
    reverse: bool = False  # list the classes from the last to the first
    reasons_only: bool = False  # no label is written: it is asked for afterwards, or nobody asks for one

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return (*self.classes, self.unsure)

    @cached_property
    def spelt(self) -> dict[str, str]:
        """Label -> how the model writes it: with a code before it, as long as there are codes.

        Two labels may begin alike, a first character outside ASCII may share its first byte with another's,
        and a vocabulary may join a label's first letter to the quote before it. No label is another's code,
        and where labels are numbers codes are letters, as long as there are others.
        """
        numbers = string.digits if any(label.isdigit() for label in self.labels) else ""
        codes = "".join(code for code in _ALONE if code not in (*self.labels, *numbers))
        if len(self.labels) > len(codes):
            codes = _CODES if len(self.labels) <= len(_CODES) else ""
        spelt = {label: f"{codes[n]} {label}" if codes else label for n, label in enumerate(self.labels)}
        order = (*reversed(self.classes), self.unsure) if self.reverse else self.labels
        return {label: spelt[label] for label in order}

    @property
    def top_logprobs(self) -> int:
        """Alternatives of a token that show all labels: several tokens may begin the same one."""
        return min(max(_LEAST_LOGPROBS, 4 * len(self.labels)), MOST_LOGPROBS)

    def keyed(self) -> dict[str, str]:
        """Return what an answer is read by beside the schema: nothing."""
        return {}

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
        return self._in_json

    @cached_property
    def _in_json(self) -> dict[str, Any]:
        label = {"type": "string", "enum": list(self.spelt.values())}
        rationale = {"type": "string", "minLength": 1, "maxLength": max(self.limit, 1)}
        numbers = [*map(str, range(1, self.clauses + 1)), NO_CLAUSE]
        clause = {"clause": {"type": "string", "enum": numbers}} if self.clauses else {}
        properties: dict[str, Any] = {"rationale": rationale, **clause, "label": label}
        if self.form == "label_first":
            properties = {"label": label, **clause, "rationale": rationale}
        elif self.form == "label_only":
            properties = {"label": label}
        elif self.reasons_only:
            properties = {"rationale": rationale, **clause}
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
    reasoning: str = ""  # what a thinking model wrote before; empty otherwise
    clause: str = ""  # number of the policy's clause that decides; empty where none was named

    @classmethod
    def failed(cls, fault: str) -> ParsedAnswer:
        """Return the answer that is none, with its reason."""
        return cls(State.FAILED, fault=fault)

    def to_json(self) -> dict[str, Any]:
        """Return the record that the cache keeps."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], schema: AnswerSchema | GuardWords) -> ParsedAnswer:
        """Return the answer of a record.

        Raises:
            JudgmentError: It is no usable answer of the schema.
        """
        try:
            answer = cls(
                State(record["state"]), record["label"], record["rationale"], record["probabilities"],
                record["perplexity"], record["fault"], record["reasoning"], record["clause"],
            )  # fmt: skip
            fits = _usable(answer, schema)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise JudgmentError(f"no record of an answer: {error}") from error
        if not fits:
            raise JudgmentError("a record of an answer that could not have been kept")
        return answer


def _usable(answer: ParsedAnswer, schema: AnswerSchema | GuardWords) -> bool:
    """Return whether an answer is one that `parse_answer` gives."""
    probs, perplexed = answer.probabilities, answer.perplexity
    named = answer.label in schema.classes if answer.state is State.LABEL else answer.label is None
    return (
        answer.state is not State.FAILED
        and named
        and answer.clause == _clause(answer.clause, schema)
        and all(isinstance(text, str) and is_text(text) for text in (answer.rationale, answer.reasoning))
        and (
            probs is None
            or (tuple(probs) == schema.classes and all(0.0 <= one <= 1.0 for one in probs.values()))
        )
        and (perplexed is None or (math.isfinite(perplexed) and perplexed >= 1.0))
    )


def guard_hint(fault: str) -> str:
    """Return what to add to a fault that a guard model may be the cause of; empty where none is."""
    if NOT_JSON not in fault:
        return ""
    return '. A guard model answers in words of its own: give it a role with kind = "guard"'


AnyForm: TypeAlias = AnswerSchema | GuardWords


def parse_answer(completion: Completion, schema: AnyForm) -> ParsedAnswer:
    """Parse the answer in a completion; anything but a whole answer of the schema is FAILED."""
    if isinstance(schema, GuardWords):
        return _parse_guard(completion, schema)
    # servers that do not take thoughts apart leave them before the answer
    thoughts, _, text = completion.text.rpartition("</think>")
    reasoning = completion.reasoning or thoughts.replace("<think>", "").strip()
    if fault := _unfinished(completion, text):
        return ParsedAnswer.failed(fault)
    if len(text) > _MOST_CHARACTERS * (schema.limit + 100) or not is_text(reasoning):
        return ParsedAnswer.failed("far longer than was asked for, or no text")
    try:
        # where no schema holds it, a model puts words or a fence of code around its object
        record = json.loads(text[text.find("{") : text.rfind("}") + 1] or text)
    except (ValueError, RecursionError):
        return ParsedAnswer.failed(NOT_JSON)
    if fault := _malformed(record, schema):
        return ParsedAnswer.failed(fault)
    rationale = record.get("rationale", "").strip()
    label = schema.unsure if schema.reasons_only else _label(record["label"], schema)
    if schema.limit and len(rationale) >= schema.limit:
        rationale = rationale[: schema.limit] + "…"  # its limit may have ended it in the middle
    # without its code a label may begin as another's code does
    coded = record.get("label") in schema.spelt.values()
    probabilities = label_probs(completion.tokens, schema.spelt, schema.classes) if coded else None
    state = State.ABSTAIN if label == schema.unsure else State.LABEL
    return ParsedAnswer(
        state, label if state is State.LABEL else None, rationale if schema.limit else "", probabilities,
        perplexity(completion.tokens), reasoning=reasoning[:MOST_REASONING],
        clause=_clause(record.get("clause"), schema),
    )  # fmt: skip


def _parse_guard(completion: Completion, words: GuardWords) -> ParsedAnswer:
    """Parse what a guard wrote; its first word decides, so an end by length is one."""
    text = completion.text.rpartition("</think>")[2].strip()
    if completion.refusal or completion.finish == "content_filter" or not is_text(text):
        return ParsedAnswer.failed(f"refused, or no text: {completion.refusal[:200]}")
    label = words.label(text)
    if label is None:
        return ParsedAnswer.failed(f"a word that vlm's `words` do not map: {text[:80]!r}")
    probabilities = words.probabilities(completion.tokens, label)
    if label == words.unsure:
        return ParsedAnswer(State.ABSTAIN, None, text[:MOST_GUARD], probabilities)
    return ParsedAnswer(State.LABEL, label, text[:MOST_GUARD], probabilities)


def is_text(text: str) -> bool:
    """Return whether a text is one: half a surrogate pair can be written nowhere."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _clause(written: object, schema: AnswerSchema | GuardWords) -> str:
    """Return the number of a clause that there is; empty: it names none."""
    most = schema.clauses if isinstance(schema, AnswerSchema) else 0
    return str(written) if str(written) in {str(number) for number in range(1, most + 1)} else ""


def _label(written: object, schema: AnswerSchema) -> str | None:
    """Return the label that is written, with its code or without; None: it was not offered.

    One that is another's code too is none, such as "1" of the labels "1 0" and "2 1": it may mean either.
    """
    meant = {spelt[0]: name for name, spelt in schema.spelt.items() if spelt != name}
    for name, spelt in schema.spelt.items():
        if written == spelt or (written == name and meant.get(name, name) == name):
            return name
    return None


def thinks(completion: Completion) -> bool:
    """Return whether a model wrote thoughts, taken apart by its server or not, or may have died of them.

    A template may open the thoughts itself, so that of those that were cut off nothing but words is there.
    """
    text = completion.text
    cut = completion.finish == "length" and "{" not in text
    return bool(completion.reasoning) or "<think>" in text or "</think>" in text or cut


def _unfinished(completion: Completion, text: str) -> str:
    """Return why a completion holds no whole answer, or nothing."""
    if completion.refusal or completion.finish == "content_filter":
        return f"refused: {completion.refusal[:MOST_GUARD] or 'stopped by a content filter'}"
    if completion.finish == "length":
        cut = f"cut off after {completion.usage.completion} tokens"
        return f"{cut}, thinking included: raise vlm.thinking_tokens" if thinks(completion) else cut
    return "" if text.strip() else "empty"


def _malformed(record: object, schema: AnswerSchema) -> str:
    """Return what is wrong with a record, or nothing."""
    expected = set(schema.to_json()["required"]) - {"clause"}  # of use, and not what is asked about
    if not isinstance(record, dict) or not expected <= set(record):
        return f"not an object with {' and '.join(sorted(expected))}"
    if not schema.reasons_only and _label(record["label"], schema) is None:
        return "a label that was not offered"
    rationale = record.get("rationale", "")
    if not isinstance(rationale, str) or (schema.limit and not rationale.strip()):
        return "no rationale"
    if not is_text(rationale):
        return "a rationale with half a surrogate pair, which is no text"
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
    found = list(re.finditer(r'(?<!\\)"rationale"\s*:\s*"((?:[^"\\]|\\.)*)', text, re.DOTALL))
    if not found:
        return None
    begin, end = found[-1].span(1)  # the last one: thoughts come before the answer
    position, logprobs = 0, []
    for token in tokens:
        # a token belongs to the reasons when it begins in them; the one that opens the quotation does not
        if begin <= position < end:
            logprobs.append(token.logprob)
        position += len(token.text)
    # 1 at least: some servers round log-probabilities to a hair above 0
    return math.exp(min(max(-sum(logprobs) / len(logprobs), 0.0), 700.0)) if logprobs else None

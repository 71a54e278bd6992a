"""Answers to questions as a model in memory gives them, with log-probabilities."""

from __future__ import annotations

import json
import math
import re

from agents.client.base import Completion, Token, Usage


def offered(request):
    """The answers that the schema allows."""
    return request.schema["properties"]["label"]["enum"]


def ending(request):
    """What is asked: the last part of the last message."""
    return request.messages[-1].parts[-1]


def wording(request):
    return re.search(r"^The question: (.*)$", ending(request), re.MULTILINE).group(1)


def answered(label, shares=None, rationale="it can be seen"):
    """A whole answer; `shares` are probabilities of first tokens: answers that begin differently."""
    record = json.dumps({"rationale": rationale, "label": label}, ensure_ascii=False)
    head, tail = record.rsplit(json.dumps(label, ensure_ascii=False), 1)
    shares = {label: 0.9} if shares is None else shares
    alternatives = tuple((f'"{name}', math.log(share)) for name, share in shares.items())
    tokens = (
        Token(head, 0.0, ((head, 0.0),)),
        Token(f'"{label}', math.log(shares[label]), alternatives),
        Token('"' + tail, 0.0, (('"' + tail, 0.0),)),
    )
    return Completion(record, "stop", Usage(100, 40, 10, 20), tokens, seconds=0.5)

"""How many tokens and pictures a prompt of ours takes: what a model's context must hold.

vLLM refuses to start where one request of the full context would not fit beside the weights, and the contexts
of today's models are long. Without --max-model-len, `agents serve` asks for "auto": as much as fits. Which
model starts on which card is a table in docs/agents.md; its arithmetic is in
tests/unit/agents/test_serving_memory.py.
"""

from __future__ import annotations

PICTURE = 752
"""Tokens of a picture: the most among the models of docs/agents.md."""
_WORDS = 4000 // 2 + 6000 // 3 + 600
"""Tokens of the words around: 4,000 characters of a post (`vlm.text_chars`) at two a token, 6,000 of policy,
classes and roles at three, and two earlier judgments with the answer."""


def prompt_tokens(pictures: int, picture: int = PICTURE) -> int:
    """Return what a prompt of ours may take with its answer, given its pictures and the tokens of each."""
    return pictures * picture + _WORDS


def pictures_that_fit(context: int) -> int:
    """Return how many pictures a prompt of ours may hold in a context."""
    return max(0, (context - _WORDS) // PICTURE)

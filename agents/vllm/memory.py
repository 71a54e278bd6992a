"""How many tokens and pictures a prompt of ours takes: what a model's context must hold.

vLLM refuses to start where one request of the full context would not fit beside the weights, and the contexts
of today's models are long. Without --max-model-len, `agents serve` asks for "auto": as much as fits. Which
model starts on which card is a table in docs/agents.md; its arithmetic is in
tests/unit/agents/test_serving_memory.py.
"""

from __future__ import annotations


def prompt_tokens(
    pictures: int, *, picture: int = 752, text_chars: int = 4000, policy_chars: int = 6000, answer: int = 600
) -> int:
    """Return what a prompt of ours may take with its answer, at two characters a token for the post.

    Args:
        pictures: Of one post, as many as are sent.
        picture: Tokens of each.
        text_chars: Of the post (`vlm.text_chars`).
        policy_chars: Of policy, classes and roles, at three a token.
        answer: Tokens of two earlier judgments and the answer.
    """
    return pictures * picture + text_chars // 2 + policy_chars // 3 + answer


def pictures_that_fit(context: int) -> int:
    """Return how many pictures a prompt of ours may hold in a context."""
    return max(0, (context - prompt_tokens(0)) // 752)

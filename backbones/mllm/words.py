"""The words of a prompt, and the cut of a post's text to what the prompt leaves."""

from __future__ import annotations

from typing import Any

from backbones.errors import PromptFitError
from backbones.mllm.answer_token import ANSWER_TOKEN, defuse, special_strings
from backbones.mllm.base import Wording

NO_TEXT = "(no words)"
_SEAMS = 2  # where a text meets the words around it, tokens may fall otherwise than in either alone


class Words:
    """Puts a post's text between the words of its task.

    Args:
        tokenizer: Of transformers, a fast one: it says where in the text each token ends.
        wording: The words around every post.
        max_tokens: Of words, text and the chat's marks together, images aside (published: 256).
        around: How many tokens the chat's marks take.

    Raises:
        PromptFitError: The words alone leave no token for a text.

    Attributes:
        budget: Tokens of text that fit.
        fixed: Tokens of everything else.
    """

    def __init__(self, tokenizer: Any, wording: Wording, max_tokens: int, around: int) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        self._wording = wording
        self._special = special_strings(tokenizer)
        self.fixed = self.count(self._around("")) + around + _SEAMS
        self.budget = max_tokens - self.fixed
        if self.budget < 1:
            raise PromptFitError(
                f"the prompt's own words take {self.fixed} tokens of {max_tokens} and leave none for the"
                " post: raise max_tokens, shorten the questions, or leave the policy out"
            )

    @property
    def questions(self) -> int:
        """Q, the answer tokens of every prompt."""
        return len(self._wording.questions)

    def around(self, text: str) -> str:
        """The whole prompt of a text, cut to the budget."""
        return self._around(self.cut(text))

    def cut(self, text: str) -> str:
        """The beginning of `text` that fits, special strings broken."""
        plain = defuse(text.strip() or NO_TEXT, self._special)
        # a token is a character at least: no need to read a novel to keep a page of it
        plain = plain[: self.budget * 32]
        offsets = self._tokenizer(plain, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in offsets["offset_mapping"]]
        return plain if len(ends) <= self.budget else plain[: ends[self.budget - 1]]

    def count(self, text: str) -> int:
        """Tokens of `text`."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _around(self, text: str) -> str:
        asked = (f"{question} {ANSWER_TOKEN}" for question in self._wording.questions)
        parts = (self._wording.opening, text, *asked, self._wording.closing)
        return "\n".join(part for part in parts if part)

"""Prompts: the words around a post, the answer token that closes each question, texts cut to what is left.

Shape legend: ``B`` prompts, ``L`` tokens after images were expanded.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from tokenizers import AddedToken
from torch import Tensor, nn

from backbones.errors import PromptFitError
from backbones.towers import readable

ANSWER_TOKEN = "<ans>"
Inputs = dict[str, Tensor]
NO_TEXT = "(no words)"
_SEAMS = 2  # where a text meets the words around it, tokens may fall otherwise than in either alone


class Wording(NamedTuple):
    """The words around every post of a task. An empty part leaves no line."""

    opening: str  # before the post: what it is, and what is asked for
    # after the post, each closed by the answer token; none for a prompt without them
    questions: tuple[str, ...]
    closing: str  # the final question, whose answer is read at the last token of the prompt
    # each question is a turn of the user, and its answer token stands where the assistant's turn has begun;
    # otherwise all are asked in one turn
    rounds: bool = False


class Turns(NamedTuple):
    """What stands around an answer token: before it, and between it and the next question."""

    before: str
    after: str


ONE_TURN = Turns("", "")  # the answer token parts the questions by itself


class Prompt(NamedTuple):
    """One post: its words, whatever they hold, and its pictures in order, upright RGB."""

    text: str
    images: Sequence[Image.Image] = ()


class Reader(Protocol):
    """Prompts to tensors. All of a batch are padded to one length."""

    @property
    def words(self) -> Words:
        """Return the words around every post, and how much of a text fits between them."""
        ...

    def read(self, prompts: Sequence[Prompt]) -> Inputs:
        """Return `input_ids` and `attention_mask` [B, L], and what the model takes for images.

        PromptFitError: a prompt whose answer tokens are not those of its questions.
        """
        ...

    def length(self, text: str, images: int) -> int:
        """Return the tokens of one prompt, to sort by: exact, or where a processor counts, an estimate."""
        ...

    def save(self, folder: Path) -> None:
        """Write tokenizer and processor, the answer token among their tokens."""
        ...


class Words:
    """Puts a post's text between the words of its task; `budget` tokens of text fit, all else takes `fixed`.

    The tokenizer is a fast one of transformers: it says where in the text each token ends. `max_tokens`
    (published: 256) are those of words, text and the chat's marks, which are `around`; `turns` stand around
    an answer token. PromptFitError: the words alone leave no token for a text.
    """

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401
        wording: Wording,
        max_tokens: int,
        around: int,
        turns: Turns = ONE_TURN,
    ) -> None:
        self._tokenizer = tokenizer
        self._turns = turns
        # what it takes for a single token wherever it stands, longest first
        added = [text for text in tokenizer.get_added_vocab() if len(text) > 1 and not text.isspace()]
        self._special = sorted({*added, ANSWER_TOKEN}, key=lambda text: (-len(text), text))
        opening, questions, closing, rounds = wording
        asked = tuple(defuse(one, self._special) for one in questions)
        self._wording = Wording(defuse(opening, self._special), asked, defuse(closing, self._special), rounds)
        self.answer_id = int(tokenizer.convert_tokens_to_ids(ANSWER_TOKEN))
        self.fixed = self._count(self._around("")) + around + _SEAMS
        self.budget = max_tokens - self.fixed
        if self.budget < 1:
            raise PromptFitError(
                f"the prompt's own words take {self.fixed} tokens of {max_tokens} and leave none for the"
                " post: raise max_tokens, shorten the questions, or leave the policy out"
            )

    def around(self, text: str) -> str:
        """Return the whole prompt of a text, cut to the budget."""
        return self._around(self.cut(text))

    def length(self, text: str) -> int:
        """Return the tokens of the whole prompt of a text, images aside."""
        return self.fixed + self._count(self.cut(text))

    def check(self, inputs: Inputs) -> None:
        """Raise PromptFitError where a prompt has another number of answer tokens than questions."""
        if self._wording.questions:
            questions = len(self._wording.questions)
            answer_positions(inputs["input_ids"], inputs["attention_mask"], self.answer_id, questions)

    def cut(self, text: str) -> str:
        """Return the beginning of `text` that fits, special strings broken."""
        # a token is a character at least: no need to read a novel to keep a page of it
        plain = defuse(readable((text.strip() or NO_TEXT)[: self.budget * 32]), self._special)
        found = self._tokenizer(plain, add_special_tokens=False, return_offsets_mapping=True)
        spans = found["offset_mapping"]
        if len(spans) <= self.budget:
            return plain
        # where a character takes several tokens, all of them or none: the next token begins within it
        return plain[: min(spans[self.budget - 1][1], spans[self.budget][0])]

    def _count(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _around(self, text: str) -> str:
        before, after = self._turns
        questions = [f"{question}{before}{ANSWER_TOKEN}" for question in self._wording.questions]
        asked = after.join(part for part in (*questions, self._wording.closing) if part)
        return "\n".join(part for part in (self._wording.opening, text, asked) if part)


def add_answer_token(model: Any, tokenizer: Any) -> int:  # noqa: ANN401 -- of transformers
    """Make `ANSWER_TOKEN` a token of its own and give it a row; return its id. Both are changed in place.

    The table only ever grows. Many models are saved with spare rows (LLaVA-OneVision 0.5B: 152,000 rows for
    151,648 tokens); there the new token takes the next spare one, where ``resize_token_embeddings(len(
    tokenizer))`` would cut the table down and with it the pretrained shape. The row begins as the mean of
    the tokens' rows: spare rows hold whatever the initialiser left. A tokenizer that knows the token keeps
    its id, the model its row.
    """
    known = tokenizer.get_vocab().get(ANSWER_TOKEN)
    if known is None:
        tokenizer.add_tokens([AddedToken(ANSWER_TOKEN, special=True, normalized=False)], special_tokens=True)
    answer_id = int(tokenizer.convert_tokens_to_ids(ANSWER_TOKEN))
    rows_before = model.get_input_embeddings().weight.shape[0]
    if answer_id >= rows_before:
        model.resize_token_embeddings(answer_id + 1, mean_resizing=False)
    if known is not None:
        return answer_id  # a checkpoint that was trained with it
    table = model.get_input_embeddings()
    with torch.no_grad():
        rows = table.weight[: min(answer_id, rows_before, len(tokenizer) - 1)]
        table.weight[answer_id] = rows.float().mean(0).to(table.weight.dtype)
    return answer_id


def answer_positions(ids: Tensor, mask: Tensor, answer_id: int, questions: int) -> Tensor:
    """Return the places [B, Q] of the answer tokens, in order; PromptFitError: a row of another number.

    They are looked for in the ids that the model sees, after images took their places: a place counted in
    the text would be off by the tokens of every image before it.
    """
    found = (ids == answer_id) & mask.bool()
    counts = found.sum(1)
    if bool((counts != questions).any()):
        row = int((counts != questions).nonzero()[0])
        raise PromptFitError(
            f"prompt {row} of the batch holds {int(counts[row])} answer tokens for {questions} questions:"
            " the prompt was cut, or a text was taken for an answer token"
        )
    return found.nonzero()[:, 1].view(-1, questions)


def embedding_name(module: nn.Module) -> str:
    """Return the dotted name of the table of token embeddings within `module`."""
    table = module.get_input_embeddings()  # type: ignore[operator]
    names: list[str] = [name for name, layer in module.named_modules() if layer is table]
    return names[0]


def defuse(text: str, special: Collection[str]) -> str:
    """Return `text` with special strings broken by a space: a post cannot answer its own questions.

    >>> defuse("so <ans> then", ("<ans>",))
    'so < ans> then'
    """
    for one in special:
        text = text.replace(one, f"{one[0]} {one[1:]}")
    return text

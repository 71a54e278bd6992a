"""The answer token: one new row of the embedding table, and texts that cannot pass for it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

ANSWER_TOKEN = "<ans>"


def add_answer_token(model: Any, tokenizer: Any) -> int:  # noqa: ANN401 -- of transformers
    """Make `ANSWER_TOKEN` a token of its own and give it a row; its id.

    The table only ever grows. Many models are saved with spare rows (LLaVA-OneVision 0.5B: 152,000 rows for
    151,648 tokens); there the new token takes the next spare one, where ``resize_token_embeddings(len(
    tokenizer))`` would cut the table down and with it the pretrained shape. The row begins as the mean of
    the tokens' rows: spare rows hold whatever the initialiser left.

    Args:
        model: A model of transformers; changed in place.
        tokenizer: Its tokenizer; changed in place. One that knows the token keeps its id, the model its row.
    """
    from tokenizers import AddedToken

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


def embedding_name(module: nn.Module) -> str:
    """The dotted name of the table of token embeddings within `module`."""
    table = module.get_input_embeddings()  # type: ignore[operator]
    names: list[str] = [name for name, layer in module.named_modules() if layer is table]
    return names[0]


def special_strings(tokenizer: Any) -> tuple[str, ...]:  # noqa: ANN401
    """What `tokenizer` takes for a single token wherever it stands, longest first."""
    added = [text for text in tokenizer.get_added_vocab() if len(text) > 1 and not text.isspace()]
    return tuple(sorted({*added, ANSWER_TOKEN}, key=lambda text: (-len(text), text)))


def defuse(text: str, special: Collection[str]) -> str:
    """`text` with every special string broken by a space, so that a post cannot answer its own questions.

    >>> defuse("so <ans> then", ("<ans>",))
    'so < ans> then'
    """
    for one in special:
        text = text.replace(one, f"{one[0]} {one[1:]}")
    return text

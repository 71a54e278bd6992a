"""Texts to padded batches of tokens, with little padding and an even amount of work a batch.

Shape legend: ``N`` texts, ``L`` tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

# Measured on two cores: larger batches leave the cache, smaller ones pay for their calls.
TOKENS_PER_BATCH = 1024
_TEXTS_AT_ONCE = 8192  # bounds the tokenizer's own working memory


def tokenise(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut at the tokenizer's limit, not padded."""
    tokens: list[list[int]] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        encodings = tokenizer.encode_batch_fast(list(texts[start : start + _TEXTS_AT_ONCE]))
        tokens.extend(encoding.ids for encoding in encodings)
    return tokens


def token_batches(tokens: Sequence[Sequence[int]], budget: int = TOKENS_PER_BATCH) -> Iterator[list[int]]:
    """Positions in `tokens`, longest first; a padded batch has at most `budget` tokens, or is one text."""
    batch: list[int] = []
    longest = 0
    for position in sorted(range(len(tokens)), key=lambda i: -len(tokens[i])):
        if batch and (len(batch) + 1) * longest > budget:
            yield batch
            batch = []
        if not batch:
            longest = len(tokens[position])
        batch.append(position)
    if batch:
        yield batch


def pad(tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both [N, L], padded with 0 (MiniLM's [PAD])."""
    lengths = torch.tensor([len(ids) for ids in tokens], dtype=torch.long)
    width = int(lengths.max()) if len(tokens) else 0
    padded = [[*ids, *[0] * (width - len(ids))] for ids in tokens]
    ids = torch.tensor(padded, dtype=torch.long).reshape(len(tokens), width)
    return ids, (torch.arange(width) < lengths.unsqueeze(1)).to(torch.long)

"""How large a model's configuration says it is, beside the files that hold its weights.

transformers builds whatever a configuration says, and only then looks for the weights: a kilobyte of JSON
would take all memory there is. So the model is drawn without memory first, and compared with its files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from backbones.errors import WeightsError

NUMBERS_A_BYTE = 4
"""That a file may hold: two of 4 bits, some of which transformers draws twice and ties."""
SLACK = 10_000_000
"""Numbers that are in no file: places and angles, for which the configuration is enough."""
FEW = 1000
"""Modules of a kind that any model may have: some numbers are kept that nothing is made of."""

_COUNTS = re.compile(r"(layers?|depths?|blocks?|experts?)\Z")


def check_sizes(name: str, revision: str, kind: Any) -> None:  # noqa: ANN401 -- one of transformers' Auto classes
    """Refuse a model whose configuration says much more than its files hold.

    Args:
        name: Of a folder, or on a hub, whose files are fetched.
        kind: What builds it from a configuration.

    Raises:
        WeightsError: It does.
        OSError, ValueError, RecursionError: There is no configuration that can be read.
    """
    from safetensors import safe_open
    from transformers import AutoConfig
    from transformers.utils.hub import cached_file

    files = _weight_files(name, revision)
    tensors = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            tensors += len(opened.keys())
    said = json.loads(Path(cached_file(name, "config.json", revision=revision) or "").read_bytes())
    # each is a module of its own, which takes memory even where its weights do not
    for key, count in _counts(said):
        if count > max(tensors, FEW):
            raise WeightsError(
                f"{name}: its config.json says {key} {count:,}, and its files hold {tensors:,} tensors."
                " Expected the configuration that its weights were saved with"
            )
    if not files:
        return  # nothing is built of it
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    with torch.device("meta"):
        drawn = kind.from_config(config, trust_remote_code=False)
    numbers = sum(one.numel() for one in (*drawn.parameters(), *drawn.buffers()))
    size = sum(file.stat().st_size for file in files)
    if numbers > NUMBERS_A_BYTE * size + SLACK:
        raise WeightsError(
            f"{name}: its config.json is of a model of {numbers / 1e6:,.0f} million numbers, and its weights"
            f" take {size / 1e6:,.0f} MB. Expected the configuration that they were saved with"
        )


def _weight_files(name: str, revision: str) -> list[Path]:
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    single, index = (
        cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        for file in ("model.safetensors", "model.safetensors.index.json")
    )
    if single is not None:  # transformers looks for them in this order
        return [Path(single)]
    if index is None:
        return []
    found, _ = get_checkpoint_shard_files(  # type: ignore[no-untyped-call]
        name, index, revision=revision
    )
    return [Path(one) for one in found]


def _counts(said: Any, key: str = "") -> Iterator[tuple[str, int]]:  # noqa: ANN401 -- JSON
    """Yield the whole numbers of a configuration that say how many modules there are."""
    if isinstance(said, dict):
        for name, value in said.items():
            yield from _counts(value, name)
    elif isinstance(said, list):
        for value in said:
            yield from _counts(value, key)
    elif isinstance(said, int) and _COUNTS.search(key):
        yield key, said

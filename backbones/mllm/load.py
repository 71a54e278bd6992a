"""Multimodal models by name, and the readers of their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backbones.loading import loading_error
from backbones.mllm import hub, smollm2_efficientnet
from backbones.mllm.base import Mllm, Padding
from backbones.mllm.prompts import Reader, Wording
from backbones.torchvision_compat import ensure_torchvision


def load_mllm(
    name: str, *, revision: str = "main", dtype: str = "auto", album: hub.Album = "images", seed: int = 0
) -> Mllm:
    """Load a pretrained model: the one that needs no download, or whatever transformers loads.

    Args:
        name: "smollm2_efficientnet", a name on a hub, or a folder.
        revision: Of the weights on a hub.
        dtype: Of a hub's model: "auto" (as saved), "float32" or "bfloat16"; smollm2_efficientnet is float32.
        album: Of a hub's model: give several pictures as "images" or as a "video".
        seed: Of the new projector of smollm2_efficientnet.

    Raises:
        WeightsError: No such model, or weights that are missing.
    """
    if name == smollm2_efficientnet.NAME:
        return smollm2_efficientnet.load(seed)
    return hub.load(name, revision=revision, dtype=dtype, album=album)


def load_reader(folder: Path, base: str, wording: Wording, padding: Padding, max_tokens: int) -> Reader:
    """Load the reader of a merged checkpoint, from the tokenizer or processor that lies in it.

    `base` is the model that was trained, as `load_mllm` takes it; the rest as for `Mllm.reader`.

    Raises:
        WeightsError: There is no tokenizer or processor.
        PromptFitError: The words leave no room for a post.
    """
    ensure_torchvision()
    from transformers import AutoProcessor, AutoTokenizer

    small = base == smollm2_efficientnet.NAME
    kind: Any = AutoTokenizer if small else AutoProcessor
    try:
        read = kind.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        what = f"{folder} holds no tokenizer that can be read"
        raise loading_error(what, error, "Write the merged checkpoint again") from error
    reader = smollm2_efficientnet.SmolLM2Reader if small else hub.HubReader
    return reader(read, wording, padding, max_tokens)

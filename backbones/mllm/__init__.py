"""Multimodal language models with answer heads: AgentPS (arXiv 2412.15251)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from backbones.mllm.base import Mllm, Padding, Reader, Wording
    from backbones.mllm.hub import Album


def load_mllm(
    name: str, *, revision: str = "main", dtype: str = "auto", album: Album = "images", seed: int = 0
) -> Mllm:
    """A pretrained model: "embedded", which needs no download, or whatever transformers loads.

    Args:
        name: "embedded", a name on a hub, or a folder.
        revision: Of the weights on a hub.
        dtype: Of a hub's model: "auto" (as saved), "float32" or "bfloat16"; embedded is float32.
        album: Of a hub's model: give several pictures as "images" or as a "video".
        seed: Of the embedded model's new projector.

    Raises:
        WeightsError: No such model, or weights that are missing.
    """
    if name == "embedded":
        from backbones.mllm.embedded import load_embedded

        return load_embedded(seed)
    from backbones.mllm.hub import load_hub

    return load_hub(name, revision=revision, dtype=dtype, album=album)


def load_reader(
    folder: Path, wording: Wording, padding: Padding, max_tokens: int, *, embedded: bool
) -> Reader:
    """The reader of a merged checkpoint, from the tokenizer or processor that lies in it.

    Args:
        folder: Of the checkpoint.
        wording, padding, max_tokens: As for `Mllm.reader`.
        embedded: Whether its base is the embedded model.

    Raises:
        WeightsError: There is no tokenizer or processor.
        PromptFitError: The words leave no room for a post.
    """
    from backbones.errors import WeightsError
    from backbones.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    from transformers import AutoProcessor, AutoTokenizer

    from backbones.mllm.embedded import EmbeddedReader
    from backbones.mllm.hub import HubReader

    try:
        if embedded:
            return EmbeddedReader(AutoTokenizer.from_pretrained(folder), wording, padding, max_tokens)
        return HubReader(AutoProcessor.from_pretrained(folder), wording, padding, max_tokens)  # type: ignore[no-untyped-call]
    except (OSError, KeyError) as error:
        raise WeightsError(f"{folder} holds no tokenizer that can be read ({error})") from error

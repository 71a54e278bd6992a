"""Multimodal models by name, and the readers of their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backbones.errors import WeightsError
from backbones.loading import loading_error, quiet_loading
from backbones.mllm import hub, smollm2_efficientnet
from backbones.mllm.base import Mllm, Padding
from backbones.mllm.declared_size import check_sizes
from backbones.mllm.prompts import Reader, Wording
from backbones.torchvision_compat import ensure_torchvision


def load_mllm(
    name: str, *, revision: str = "main", dtype: str = "auto", album: hub.Album = "images", seed: int = 0
) -> Mllm:
    """Load a pretrained model: the one that needs no download, or what transformers loads.

    That is "smollm2_efficientnet", in float32, with pictures as images; the seed is of its new projector. Of
    another, by its name on a hub or a folder, `dtype` is "auto" (as saved), "float32" or "bfloat16", and
    several pictures are given as "images" or as a "video".

    Raises:
        WeightsError: No such model, weights that are missing, or a way of taking it that it has not.
    """
    if name == smollm2_efficientnet.NAME:
        smollm2_efficientnet.check_given(dtype, album)
        return smollm2_efficientnet.load(seed)
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():  # no name on a hub begins so
        raise WeightsError(f"{name}: no such folder; expected the one that holds the base model's files")
    ensure_torchvision()
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        with quiet_loading():
            # what a branch stands for now: weights and processor are of one commit; "" of a folder
            commit = extract_commit_hash(cached_file(name, "config.json", revision=revision), None) or ""
            revision = commit or revision
            kind: Any = AutoModelForImageTextToText
            check_sizes(name, revision, kind)  # first of all: whatever reads the configuration believes it
            processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                name, revision=revision, trust_remote_code=False
            )
            whole, found = kind.from_pretrained(
                name, revision=revision, dtype=dtype, trust_remote_code=False, output_loading_info=True,
                ignore_mismatched_sizes=True, use_safetensors=True,
            )  # fmt: skip
    except WeightsError:
        raise
    except Exception as error:  # of files that are none of its own transformers makes anything
        # an ImportError names the package that the model's processor wants, and how to install it
        what = f"{name} could not be loaded as an image-text-to-text model"
        advice = (
            "Expected a folder or a name on the hub, for instance llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
        )
        raise loading_error(what, error, advice) from error
    # transformers draws those at random and goes on
    drawn = sorted({*found["missing_keys"], *(one for one, *_ in found["mismatched_keys"])})
    if drawn:
        raise WeightsError(
            f"{name}: {len(drawn)} of its tensors are in none of its files, or in another shape, {drawn[0]}"
            " first. Expected whole weights: download them again"
        )
    return hub.from_parts(name, whole, processor, album=album, revision=commit)


def load_reader(
    folder: Path,
    base: str,
    wording: Wording,
    padding: Padding,
    max_tokens: int,
    *,
    album: hub.Album = "images",
) -> Reader:
    """Load the reader of a merged checkpoint of the model `base`, from the tokenizer or processor in it.

    WeightsError: there is none; PromptFitError: the words leave no room for a post.
    """
    ensure_torchvision()
    from transformers import AutoProcessor, AutoTokenizer

    small = base == smollm2_efficientnet.NAME
    kind: Any = AutoTokenizer if small else AutoProcessor
    try:
        read = kind.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # see above
        what = f"{folder} holds no tokenizer that can be read"
        raise loading_error(what, error, "Write the merged checkpoint again") from error
    if small:
        return smollm2_efficientnet.SmolLM2Reader(read, wording, padding, max_tokens)
    return hub.HubReader(read, wording, padding, max_tokens, album)

"""open_clip's models, tokenizers and transforms, with its failures said in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from backbones.errors import WeightsError
from backbones.torchvision_compat import ensure_torchvision

ensure_torchvision()
import open_clip  # noqa: E402
from open_clip.factory import parse_model_name  # noqa: E402
from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: E402

_CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin")
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def load_model(model: str, weights: str | Path, like: str | None) -> nn.Module:
    """The model with its weights, on the CPU in float32.

    Raises:
        WeightsError: see `backbones.clip.ClipBackbone`.
    """
    with_schema = parse_model_name(model)[0] is not None
    tag = {} if with_schema else _check_choice(model, weights, like)
    try:
        loaded: nn.Module = open_clip.create_model(
            model,
            pretrained=None if with_schema else str(weights),
            require_pretrained=True,
            weights_only=True,
            # The tag says which activation its weights were trained with; open_clip would only warn.
            force_quick_gelu=bool(tag.get("quick_gelu", False)),
            force_preprocess_cfg={key: tag[key] for key in _PREPROCESSING if tag.get(key) is not None},
        )
    except Exception as error:
        # The hub, its client, torch.load and safetensors each raise types of their own.
        raise WeightsError(_explain(model, weights, error)) from error
    return loaded


def load_tokenizer(model: str) -> Callable[[list[str]], Tensor]:
    """The model's tokenizer: texts, N of them, to ids [N, C].

    Raises:
        WeightsError: the tokenizer is not on this machine and cannot be fetched.
    """
    try:
        tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(model)
    except Exception as error:
        raise WeightsError(
            f"the tokenizer of {model} could not be loaded: {_first_line(error)}. It comes from the Hugging "
            "Face hub: run once with a network, or use local-dir:FOLDER with the tokenizer's files in FOLDER."
        ) from error
    return tokenizer


def architecture(model: str, weights: str | Path, like: str | None) -> dict[str, Any]:
    """What the weights do not say: heads, activation, pooling. JSON values only."""
    schema, identifier = parse_model_name(model)
    if schema == "local-dir":
        config: dict[str, Any] = json.loads((Path(identifier) / "open_clip_config.json").read_text("utf-8"))
        return dict(config["model_cfg"])
    if schema is not None:
        return {"hub": identifier}
    tag = open_clip.get_pretrained_cfg(model, like or str(weights))
    return {**(open_clip.get_model_config(model) or {}), "tag_quick_gelu": bool(tag.get("quick_gelu", False))}


def preprocessing_of(model: nn.Module) -> dict[str, Any]:
    """The preprocessing that belongs to the loaded weights."""
    return dict(open_clip.get_model_preprocess_cfg(model))


def transform_of(preprocessing: dict[str, Any], *, train: bool) -> Callable[[Image.Image], Tensor]:
    """An RGB image to pixels [3, H, W]."""
    transform: Callable[[Image.Image], Tensor] = image_transform_v2(
        PreprocessCfg(**preprocessing), is_train=train
    )
    return transform


def _check_choice(model: str, weights: str | Path, like: str | None) -> dict[str, Any]:
    """The configuration of the tag that the weights bear or resemble; {} when there is none."""
    if open_clip.get_model_config(model) is None:
        raise WeightsError(
            f"open_clip has no model {model!r}; python -c 'import open_clip; open_clip.list_models()'"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    for tag in filter(None, [like]):
        if not open_clip.is_pretrained_cfg(model, tag):
            raise WeightsError(
                f"like={tag!r} is no tag of {model}; expected one of {', '.join(tags) or 'none'}"
            )
    if open_clip.is_pretrained_cfg(model, str(weights)):
        return dict(open_clip.get_pretrained_cfg(model, str(weights)))
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(
            f"weights {str(weights)!r}: neither a file nor a tag of {model} ({', '.join(tags) or 'none'})"
        )
    if path.suffix not in _CHECKPOINTS:
        raise WeightsError(
            f"{path}: a checkpoint must end in {', '.join(_CHECKPOINTS)}; convert it to safetensors"
        )
    return dict(open_clip.get_pretrained_cfg(model, like)) if like else {}


def _explain(model: str, weights: str | Path, error: Exception) -> str:
    if not Path(weights).is_file() and ("download" in str(error) or "Hub" in str(error)):
        return (
            f"the weights {str(weights)!r} of {model} are not on this machine and could not be fetched. Run "
            "once with a network, or fetch the checkpoint elsewhere and give its path as weights (with "
            f"like={str(weights)!r}); the backbone 'embedded' needs no download. ({_first_line(error)})"
        )
    return (
        f"the weights {str(weights)!r} do not load into {model}: {_first_line(error)}. Expected safetensors, "
        "or a torch file that holds only tensors, of exactly this architecture."
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__

"""What a frozen vision tower makes of pictures: taken out of a model once, given back in the place of pixels.

transformers' models return it as `image_outputs` or `video_outputs`, and take it as `mm_encoder_outputs`.

Shape legend: ``S`` tensors of a picture, one and Qwen3-VL's deep ones; ``N`` tokens of a batch's pictures;
``D`` width.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backbones.mllm.prompts import Inputs

FEATURES, FEATURES_OF_VIDEO = "image_features", "video_features"
"""Names among a model's inputs: [S, N, D] of all pictures, or videos, of a batch in their order."""


class _Joined(tuple[Tensor]):
    """One tensor of all pictures in a tuple: some models join what is in it, others take it for a tensor."""

    def to(self, *args: Any) -> Tensor:  # noqa: ANN401 -- as a tensor's
        return self[0].to(*args)

    def flatten(self, *_dimensions: int) -> Tensor:
        return self[0]


def given_features(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the inputs as a model takes them: features are laid out as its own tower's."""
    found: dict[str, Any] = dict(inputs)
    for name, media in ((FEATURES, "image"), (FEATURES_OF_VIDEO, "video")):
        if name in found:
            first, *deep = found.pop(name).unbind(0)
            outputs = SimpleNamespace(
                pooler_output=_Joined((first,)), deepstack_features=[_Joined((one,)) for one in deep]
            )
            found["mm_encoder_outputs"] = {media: outputs}
    return found


class Features(NamedTuple):
    """Features of all pictures of a batch."""

    tensor: Tensor  # [S, N, D]
    sizes: tuple[int, ...]  # tokens of each piece that the tower gave: pictures, or their tiles, or the posts

    def split(self, pictures: int) -> list[Tensor]:
        """Return [S, T, D] of each picture.

        Pieces that are not the pictures hold equally many tokens of each: pictures of one size are cut alike.
        ValueError: they cannot.
        """
        if len(self.sizes) == pictures and all(self.sizes):
            return list(torch.split(self.tensor, list(self.sizes), dim=1))
        tokens = self.tensor.shape[1]
        if tokens % pictures:
            raise ValueError(f"{tokens} tokens of {pictures} pictures: expected equally many of each")
        return list(torch.split(self.tensor, tokens // pictures, dim=1))


def taken_features(output: Any) -> Features | None:  # noqa: ANN401 -- a model's
    """Return the features that a model computed, or was given; None where there were no pictures."""
    for name in ("image_outputs", "video_outputs"):
        outputs = getattr(output, name, None)
        if outputs is not None:
            tensors = [outputs.pooler_output, *(getattr(outputs, "deepstack_features", None) or ())]
            first = outputs.pooler_output
            pieces = first if not isinstance(first, Tensor) else first.flatten(0, -2)[None]
            return Features(torch.stack([*map(_joined, tensors)]).detach(), tuple(len(one) for one in pieces))
    return None


def without_pixels(inputs: Inputs, features: Tensor) -> Inputs:
    """Return what was read of blank pictures, with features in the place of their pixels."""
    video = "pixel_values_videos" in inputs  # some models take a video's frames for pictures
    kept = {name: one for name, one in inputs.items() if not name.startswith("pixel_")}
    return kept | {FEATURES_OF_VIDEO if video else FEATURES: features}


def takes_features(module: nn.Module) -> bool:
    """Return whether a model's forward pass takes what its tower gave before."""
    return "mm_encoder_outputs" in inspect.signature(module.forward).parameters


def _joined(features: Any) -> Tensor:  # noqa: ANN401 -- a tensor or a sequence of tensors, each [..., D]
    parts = [features] if isinstance(features, Tensor) else list(features)
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in parts])

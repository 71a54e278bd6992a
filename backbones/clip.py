"""Any open_clip model as a backbone: its own preprocessing, its own tokenizer, both towers.

Texts longer than the model's context (77 tokens for most) are cut by its tokenizer; the start is kept.

Shape legend: ``B`` posts, ``N`` texts, ``C`` context length, ``M`` images, ``T = I`` embedding width,
``D = T + I + 2``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.base import Encodable, Encoded, FeatureLayout
from backbones.errors import WeightsError
from backbones.images import open_image
from backbones.loading import Placement, place
from backbones.rows import (
    ModuleDigest,
    assemble,
    collate_images,
    encode_posts,
    fingerprint,
    freeze_batch_norm,
    has_text,
    inference,
    on_device,
    text_rows,
)
from backbones.torchvision_compat import ensure_torchvision

ensure_torchvision()
import open_clip  # noqa: E402
from open_clip.factory import parse_model_name  # noqa: E402
from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: E402

_CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin")
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")

# What a tokenizer makes of these stands for it in the fingerprint: case, scripts, emoji, cutting.
_PROBES = ("Straße, NAÏVE & co. #tag @user 😀 ١٢٣", "", "a b " * 600)


class CLIPModule(nn.Module):
    """An open_clip model; ``forward(inputs)`` gives rows [B, D] with gradients. Batch norm stays frozen."""

    def __init__(self, model: nn.Module, placement: Placement) -> None:
        super().__init__()
        self.model: Any = model
        self.placement = placement
        self.widths = (0, 0)

    def train(self, mode: bool = True) -> CLIPModule:
        super().train(mode)
        freeze_batch_norm(self)
        return self

    def embed_text(self, ids: Tensor) -> Tensor:
        """Embed token ids [N, C] to unit embeddings [N, T]."""
        with self.placement.autocast():
            embedded = self.model.encode_text(ids)
        return F.normalize(embedded.float(), dim=1)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Embed pixels [M, 3, H, W] to unit embeddings [M, I]."""
        with self.placement.autocast():
            embedded = self.model.encode_image(pixels)
        return F.normalize(embedded.float(), dim=1)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Turn the `collate` of B posts to rows [B, D]."""
        given = on_device(inputs, self.placement.device)
        text = given["pixels"].new_zeros(0, self.widths[0])
        image = given["pixels"].new_zeros(0, self.widths[1])
        if len(given["ids"]):
            text = self.embed_text(given["ids"])
        if len(given["pixels"]):
            image = self.embed_image(given["pixels"])
        return assemble(text, given["text_rows"], image, given["image_rows"], int(inputs["size"]))


class CLIP:
    """An open_clip model: both towers, its own preprocessing and tokenizer (see `Backbone` for the rows).

    ``CLIP("ViT-L-14", "openai")`` needs the weights on this machine, or a network once; a row has
    ``T + I + 2`` numbers, 768 + 768 + 2 for ViT-L-14.

    Args:
        model: A model name of open_clip, or ``local-dir:FOLDER`` / ``hf-hub:OWNER/NAME`` (`weights` is then
            unused).
        weights: A pretraining tag of that model, or the path of a checkpoint (safetensors, or a torch file,
            of which only tensors are read).
        like: For a checkpoint path: the tag whose preprocessing and activation it shares. None: the model's
            own configuration and CLIP's usual preprocessing.
        device: "auto", "cpu", "cuda".
        dtype: Of the towers' products: "auto" (fp32 on a CPU, else bf16 or fp16), "fp32", "bf16", "fp16".

    Raises:
        WeightsError: an unknown model or tag, weights that are not on this machine and cannot be fetched, or
            that do not fit the model.
        ValueError: another dtype, or "cuda" where there is none.
    """

    def __init__(
        self,
        model: str = "ViT-L-14",
        weights: str | Path = "openai",
        *,
        like: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.name = "clip:local-dir" if model.startswith("local-dir:") else f"clip:{model}"
        self._placement = place(device, dtype)
        self._module = CLIPModule(load_model(model, weights, like), self._placement)
        self._module.to(self._placement.device).eval()
        self._tokenizer = _load_tokenizer(model)
        self._architecture = _architecture(model, weights, like)
        self._preprocessing = _preprocessing_of(self._module.model)
        self._evaluate = _transform_of(self._preprocessing, train=False)
        self._augment = _transform_of(self._preprocessing, train=True)
        self._digest = ModuleDigest(self._module)
        self.layout = self._measure()
        self._module.widths = (self.layout.text_width, self.layout.image_width)

    @property
    def module(self) -> CLIPModule:
        """Both towers, trainable; `encode` runs the same object, so it follows whatever training does."""
        return self._module

    def fingerprint(self) -> str:
        """Return the hex SHA-256; where the weights came from does not matter, what they are does."""
        probes = torch.cat([self._tokenizer([text]) for text in _PROBES]).numpy()
        return fingerprint(
            {
                "name": self.name,
                "architecture": self._architecture,
                "weights": self._digest.hexdigest(),
                "preprocessing": self._preprocessing,
                "tokenizer": hashlib.sha256(probes.astype("<i8").tobytes()).hexdigest(),
                "max tokens": probes.shape[1],
                "dtype": str(self._placement.dtype),
            }
        )

    def encode(
        self, posts: Sequence[Encodable], *, batch_size: int = 64, workers: int = 0, progress: bool = False
    ) -> Encoded:
        """Return rows [B, D]; `batch_size` counts images, and texts."""

        def embed_texts(distinct: Sequence[str]) -> Tensor:
            device = self._placement.device
            texts = list(distinct)
            batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
            return torch.cat([self._module.embed_text(self._tokenizer(b).to(device)).cpu() for b in batches])

        with inference(self._module):
            return encode_posts(
                posts,
                self.layout,
                embed_texts=embed_texts,
                embed_images=lambda pixels: self._module.embed_image(pixels.to(self._placement.device)).cpu(),
                transform=self._pixels,
                batch_size=batch_size,
                workers=workers,
                progress=progress,
            )

    def collate(self, posts: Sequence[Encodable], *, train: bool = False) -> dict[str, Tensor]:
        """Build `inputs` of `module`: ids [N, C], text_rows [N], pixels [M, 3, H, W], image_rows [M], size.

        Args:
            posts: B posts.
            train: Crop images slightly at random, as open_clip trains (torch's seed decides).

        Raises:
            ImageError: an image cannot be read; the message names the post.
        """
        texts = [post.text for post in posts if has_text(post)]
        ids = self._tokenizer(texts) if texts else torch.zeros(0, 1, dtype=torch.long)
        transform = self._training_pixels if train else self._pixels
        images = collate_images(posts, transform, self._sides())
        return {"ids": ids, "text_rows": text_rows(posts), "size": torch.tensor(len(posts)), **images}

    def lora_targets(self) -> list[str]:
        """Return names for ``peft.LoraConfig(target_modules=...)``: the linear layers that are really called.

        ``nn.MultiheadAttention`` hands its weights to a function and never calls its ``out_proj``, so an
        adapter there would be ignored; those layers are left out, the feed-forward ones remain.
        """
        unused = {
            f"{name}.out_proj"
            for name, part in self._module.named_modules()
            if isinstance(part, nn.MultiheadAttention)
        }
        linear = (name for name, part in self._module.named_modules() if isinstance(part, nn.Linear))
        return sorted(name for name in linear if name not in unused)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Trade time for memory in the backward pass; takes effect in training mode."""
        self._module.model.set_grad_checkpointing(enabled)

    def _sides(self) -> tuple[int, int]:
        size: Any = self._preprocessing["size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def _measure(self) -> FeatureLayout:
        """Measure the widths that the towers really give, seen on one empty text and one black image."""
        device = self._placement.device
        with inference(self._module):
            text = self._module.embed_text(self._tokenizer([""]).to(device))
            image = self._module.embed_image(torch.zeros(1, 3, *self._sides(), device=device))
        return FeatureLayout(text.shape[1], image.shape[1])

    def _pixels(self, path: Path) -> Tensor:
        pixels: Tensor = self._evaluate(open_image(path, target_size=max(self._sides())))
        return pixels

    def _training_pixels(self, path: Path) -> Tensor:
        pixels: Tensor = self._augment(open_image(path, target_size=max(self._sides())))
        return pixels


def load_model(model: str, weights: str | Path, like: str | None) -> nn.Module:
    """Load the model with its weights, on the CPU in float32.

    Raises:
        WeightsError: see `CLIP`.
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


def _load_tokenizer(model: str) -> Callable[[list[str]], Tensor]:
    """Load the model's tokenizer: texts, N of them, to ids [N, C].

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


def _architecture(model: str, weights: str | Path, like: str | None) -> dict[str, Any]:
    """Return what the weights do not say: heads, activation, pooling. JSON values only."""
    schema, identifier = parse_model_name(model)
    if schema == "local-dir":
        config: dict[str, Any] = json.loads((Path(identifier) / "open_clip_config.json").read_text("utf-8"))
        return dict(config["model_cfg"])
    if schema is not None:
        return {"hub": identifier}
    tag = open_clip.get_pretrained_cfg(model, like or str(weights))
    return {**(open_clip.get_model_config(model) or {}), "tag_quick_gelu": bool(tag.get("quick_gelu", False))}


def _preprocessing_of(model: nn.Module) -> dict[str, Any]:
    """Return the preprocessing that belongs to the loaded weights."""
    return dict(open_clip.get_model_preprocess_cfg(model))


def _transform_of(preprocessing: dict[str, Any], *, train: bool) -> Callable[[Image.Image], Tensor]:
    """Build the transform of an RGB image to pixels [3, H, W]."""
    transform: Callable[[Image.Image], Tensor] = image_transform_v2(
        PreprocessCfg(**preprocessing), is_train=train
    )
    return transform


def _check_choice(model: str, weights: str | Path, like: str | None) -> dict[str, Any]:
    """Return the configuration of the tag that the weights bear or resemble; {} when there is none."""
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
            f"like={str(weights)!r}); the backbone 'minilm_efficientnet' needs no download. "
            f"({_first_line(error)})"
        )
    return (
        f"the weights {str(weights)!r} do not load into {model}: {_first_line(error)}. Expected safetensors, "
        "or a torch file that holds only tensors, of exactly this architecture."
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__

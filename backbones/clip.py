"""Any open_clip model as a backbone: its own preprocessing, its own tokenizer, both towers.

Texts longer than the model's context (77 tokens for most) are cut by its tokenizer; the start is kept.

Shape legend: ``B`` posts, ``N`` texts, ``C`` context length, ``M`` images, ``T = I`` embedding width,
``D = T + I + 2``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.base import Encoded, FeatureLayout, PostLike
from backbones.clip_loading import architecture, load_model, load_tokenizer, preprocessing_of, transform_of
from backbones.devices import Placement, place
from backbones.images import open_image
from backbones.rows import (
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
from backbones.weights import ModuleDigest

# What a tokenizer makes of these stands for it in the fingerprint: case, scripts, emoji, cutting.
_PROBES = ("Straße, NAÏVE & co. #tag @user 😀 ١٢٣", "", "a b " * 600)


class ClipModule(nn.Module):
    """An open_clip model; ``forward(inputs)`` gives rows [B, D] with gradients. Batch norm stays frozen."""

    def __init__(self, model: nn.Module, placement: Placement) -> None:
        super().__init__()
        self.model: Any = model
        self.placement = placement
        self.widths = (0, 0)

    def train(self, mode: bool = True) -> ClipModule:
        super().train(mode)
        freeze_batch_norm(self)
        return self

    def embed_text(self, ids: Tensor) -> Tensor:
        """Token ids [N, C] to unit embeddings [N, T]."""
        with self.placement.autocast():
            embedded = self.model.encode_text(ids)
        return F.normalize(embedded.float(), dim=1)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Pixels [M, 3, H, W] to unit embeddings [M, I]."""
        with self.placement.autocast():
            embedded = self.model.encode_image(pixels)
        return F.normalize(embedded.float(), dim=1)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The `collate` of B posts to rows [B, D]."""
        given = on_device(inputs, self.placement.device)
        text = given["pixels"].new_zeros(0, self.widths[0])
        image = given["pixels"].new_zeros(0, self.widths[1])
        if len(given["ids"]):
            text = self.embed_text(given["ids"])
        if len(given["pixels"]):
            image = self.embed_image(given["pixels"])
        return assemble(text, given["text_rows"], image, given["image_rows"], int(inputs["size"]))


class ClipBackbone:
    """An open_clip model behind the contract of `backbones.base`.

    Args:
        model: A model name of open_clip, or ``local-dir:FOLDER`` / ``hf-hub:OWNER/NAME`` (`weights` is then
            unused).
        weights: A pretraining tag of that model, or the path of a checkpoint (safetensors, or a torch file,
            of which only tensors are read).
        like: For a checkpoint path: the tag whose preprocessing and activation it shares. None: the model's
            own configuration and CLIP's usual preprocessing.
        device: "auto", "cpu", "cuda".
        dtype: "auto", "fp32", "bf16", "fp16".

    Raises:
        WeightsError: an unknown model or tag, weights that are not on this machine and cannot be fetched, or
            that do not fit the model.
    """

    def __init__(
        self,
        *,
        model: str = "ViT-L-14",
        weights: str | Path = "openai",
        like: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.name = "clip:local-dir" if model.startswith("local-dir:") else f"clip:{model}"
        self._placement = place(device, dtype)
        self._module = ClipModule(load_model(model, weights, like), self._placement)
        self._module.to(self._placement.device).eval()
        self._tokenizer = load_tokenizer(model)
        self._architecture = architecture(model, weights, like)
        self._preprocessing = preprocessing_of(self._module.model)
        self._evaluate = transform_of(self._preprocessing, train=False)
        self._augment = transform_of(self._preprocessing, train=True)
        self._digest = ModuleDigest(self._module)
        self.layout = self._measure()
        self._module.widths = (self.layout.text_width, self.layout.image_width)

    @property
    def module(self) -> ClipModule:
        """Both towers, trainable; `encode` runs the same object, so it follows whatever training does."""
        return self._module

    def fingerprint(self) -> str:
        """Hex SHA-256; where the weights came from does not matter, what they are does."""
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
        self, posts: Sequence[PostLike], *, batch_size: int = 64, workers: int = 0, progress: bool = False
    ) -> Encoded:
        """Rows [B, D]; `batch_size` counts images, and texts."""

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

    def collate(self, posts: Sequence[PostLike], *, train: bool = False) -> dict[str, Tensor]:
        """`inputs` of `module`: ids [N, C], text_rows [N], pixels [M, 3, H, W], image_rows [M], size [].

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
        """For ``peft.LoraConfig(target_modules=...)``: the linear layers that are really called.

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
        """The widths that the towers really give, seen on one empty text and one black image."""
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

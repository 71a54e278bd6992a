"""From tower embeddings to feature rows: the arithmetic that every backbone shares.

Shape legend: ``B`` posts, ``N`` texts, ``M`` images, ``T`` / ``I`` block widths, ``D = T + I + 2``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from backbones.base import Encodable, Encoded, EncodeFailure, FeatureArray, FeatureLayout
from backbones.errors import ImageError
from backbones.images import prefetch_images

ROW_FORMAT = "rows-1"  # part of every fingerprint: a change in the arithmetic below must change it

Transform = Callable[[Path], Tensor]
_State = tuple[tuple[str, int, int], ...]


def has_text(post: Encodable) -> bool:
    """Tell whether a post has a text; one of nothing but white space is none."""
    return bool(post.text.strip())


def assemble(text: Tensor, text_rows: Tensor, image: Tensor, image_rows: Tensor, size: int) -> Tensor:
    """Assemble unit embeddings to feature rows.

    Args:
        text: Unit text embeddings [N, T].
        text_rows: The post that each text belongs to [N], relative to the batch.
        image: Unit image embeddings [M, I].
        image_rows: The post that each image belongs to [M]; the images of one post are averaged.
        size: B.

    Returns:
        Rows [B, D], float32.
    """
    text_block = text.new_zeros(size, text.shape[1]).index_add(0, text_rows, text)
    image_sum = image.new_zeros(size, image.shape[1]).index_add(0, image_rows, image)
    return join(text_block, image_sum, _flags(text_rows, size), _flags(image_rows, size))


def join(text_block: Tensor, image_sum: Tensor, with_text: Tensor, with_image: Tensor) -> Tensor:
    """Join blocks [B, T], [B, I] and flags [B] to rows [B, D]; an album's scaled sum is its scaled mean."""
    flags = torch.stack([with_text, with_image], dim=1).to(text_block)
    return torch.cat([text_block, F.normalize(image_sum, dim=1), flags], dim=1)


def _flags(rows: Tensor, size: int) -> Tensor:
    return torch.zeros(size, device=rows.device).index_fill(0, rows, 1.0)


def encode_posts(
    posts: Sequence[Encodable],
    layout: FeatureLayout,
    *,
    embed_texts: Callable[[Sequence[str]], Tensor],
    embed_images: Callable[[Tensor], Tensor],
    transform: Transform,
    batch_size: int,
    workers: int,
    progress: bool,
) -> Encoded:
    """Compute feature rows without gradients; equal texts are encoded once, images stream through in batches.

    Args:
        posts: The posts, B of them.
        layout: The blocks' widths.
        embed_texts: Distinct texts, N of them, to unit embeddings [N, T] on the CPU.
        embed_images: Pixels [M, 3, H, W] to unit embeddings [M, I] on the CPU.
        transform: A path to pixels [3, H, W]; raises `ImageError`.
        batch_size: Images that go through the tower at once.
        workers: Threads that decode; 0 decodes in this one.
        progress: Draw a bar over the images.
    """
    distinct = {post.text: None for post in posts if has_text(post)}
    place = {text: position for position, text in enumerate(distinct)}
    text_block = torch.zeros(len(posts), layout.text_width)
    with_text = torch.tensor([has_text(post) for post in posts], dtype=torch.bool)
    if distinct:
        order = [place[post.text] for post in posts if has_text(post)]
        text_block[with_text] = embed_texts(list(distinct))[order]
    image_sum, failures = _sum_images(
        posts,
        layout,
        embed_images=embed_images,
        transform=transform,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    with_image = torch.tensor([bool(post.images) for post in posts], dtype=torch.bool)
    rows = join(text_block, image_sum, with_text, with_image)
    rows[list(failures)] = torch.nan
    array: FeatureArray = rows.numpy()
    return Encoded(array, tuple(EncodeFailure(i, failures[i]) for i in sorted(failures)))


def _sum_images(
    posts: Sequence[Encodable],
    layout: FeatureLayout,
    *,
    embed_images: Callable[[Tensor], Tensor],
    transform: Transform,
    batch_size: int,
    workers: int,
    progress: bool,
) -> tuple[Tensor, dict[int, str]]:
    """Return sums of unit image embeddings [B, I], and the reason for each post with an unreadable image."""
    owners = [index for index, post in enumerate(posts) for _ in post.images]
    paths = [path for post in posts for path in post.images]
    image_sum = torch.zeros(len(posts), layout.image_width)
    failures: dict[int, str] = {}
    batch: list[Tensor] = []
    rows: list[int] = []

    def flush() -> None:
        if batch:
            image_sum.index_add_(0, torch.tensor(rows), embed_images(torch.stack(batch)))
            batch.clear()
            rows.clear()

    stream = prefetch_images(paths, transform, workers)
    bar = tqdm(stream, total=len(paths), disable=not progress, desc="images")
    for owner, decoded in zip(owners, bar, strict=True):
        if isinstance(decoded, ImageError):
            failures.setdefault(owner, str(decoded))
            continue
        batch.append(decoded)
        rows.append(owner)
        if len(batch) == batch_size:
            flush()
    flush()
    return image_sum, failures


def collate_images(
    posts: Sequence[Encodable], transform: Transform, size: tuple[int, int]
) -> dict[str, Tensor]:
    """Return pixels [M, 3, H, W] of all images of `posts`, and the post that each belongs to [M].

    Raises:
        ImageError: an image cannot be read; the message names the post.
    """
    pixels: list[Tensor] = []
    rows: list[int] = []
    for index, post in enumerate(posts):
        for path in post.images:
            try:
                pixels.append(transform(path))
            except ImageError as error:
                raise ImageError(f"post {post.id!r}: {error}") from error
            rows.append(index)
    stacked = torch.stack(pixels) if pixels else torch.zeros(0, 3, *size)
    return {"pixels": stacked, "image_rows": torch.tensor(rows, dtype=torch.long)}


def text_rows(posts: Sequence[Encodable]) -> Tensor:
    """Return the positions [N] of the posts that have a text."""
    return torch.tensor([index for index, post in enumerate(posts) if has_text(post)], dtype=torch.long)


def on_device(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the same inputs on `device`."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}


@contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """Hold a module in evaluation mode without gradients; its own mode comes back afterwards."""
    training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        module.train(training)


def freeze_batch_norm(module: nn.Module) -> None:
    """Keep the published statistics: those of a small batch would move the features more than training."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Return the hex SHA-256 of what can change a row, the row format included."""
    text = json.dumps({"format": ROW_FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class ModuleDigest:
    """SHA-256 of a module's tensors, names included; recomputed only when a tensor has changed.

    The live tensors are hashed, not the file: a module that was trained, or got adapters, is another
    backbone, and its rows must not be mixed with the old ones in a cache.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._state: _State = ()
        self._digest = ""

    def hexdigest(self) -> str:
        tensors = self._module.state_dict(keep_vars=True)
        state = tuple((name, tensor.data_ptr(), tensor._version) for name, tensor in tensors.items())
        if state != self._state:
            self._digest, self._state = _digest(tensors), state
        return self._digest


def _digest(tensors: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()

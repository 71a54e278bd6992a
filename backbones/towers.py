"""What backbones of a text and an image tower share: from posts to embeddings to feature rows.

Shape legend: ``B`` posts, ``N`` texts, ``M`` images, ``T`` / ``I`` block widths, ``D = T + I + 2``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.base import Encodable, Encoded, EncodeFailure, FeatureArray, FeatureLayout
from backbones.errors import ImageError
from backbones.images import open_image, prefetch_images
from backbones.loading import Placement
from backbones.progress import ProgressBar

ROW_FORMAT = "rows-2"  # part of every fingerprint: a change in the arithmetic below must change it
# what a tokenizer makes of these stands for it in a fingerprint: case, scripts, emoji, cutting
PROBES = ("Straße, NAÏVE & co. #tag @user 😀 ١٢٣", "", "a b " * 600)

# Texts and images that go through a tower at once: always so many, the last filled up with repeats.
# How a product rounds hangs on its shape, and a row must not hang on the posts beside. On a CPU more
# images at once leave the cache, and are slower.
_AT_ONCE = {"cpu": (4, 1)}
_AT_ONCE_ELSEWHERE = (32, 32)

ToPixels = Callable[[Image.Image], Tensor]
"""From an RGB image to pixels [3, H, W]."""
Item = TypeVar("Item")


def freeze_batch_norm(module: nn.Module) -> None:
    """Keep the published statistics: those of a small batch would move the features more than training."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


class Towers(nn.Module):
    """Both towers; ``forward(inputs)`` gives rows [B, D] with gradients. Batch norm stays frozen."""

    layout = FeatureLayout(0, 0)

    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self.placement = placement

    def embed_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Embed the texts of a batch, N >= 1 of them, to unit embeddings [N, T]."""
        raise NotImplementedError

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Embed pixels [M, 3, H, W] to unit embeddings [M, I]."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Towers:
        """Set the mode; batch norm keeps the published statistics."""
        super().train(mode)
        freeze_batch_norm(self)
        return self

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Turn the `collate` of B posts to rows [B, D]."""
        given = {name: x.to(self.placement.device, non_blocking=True) for name, x in inputs.items()}
        pixels = given["pixels"]
        text, image = (pixels.new_zeros(0, width) for width in self.layout)
        if len(given["ids"]):
            text = self.embed_tokens(given)
        if len(pixels):
            image = self.embed_image(pixels)
        return assemble(text, given["text_rows"], image, given["image_rows"], int(inputs["size"]))


class TwoTowers:
    """A `Backbone` of two towers, but for its name, its loading and its tokens.

    The module is moved to its device here; `sides` are H and W of the pixels. `_evaluate` and `_augment` say
    what becomes of images, the latter at training.
    """

    name: str
    _evaluate: ToPixels
    _augment: ToPixels

    def __init__(self, module: Towers, sides: tuple[int, int]) -> None:
        self._towers = module
        self._towers.to(module.placement.device).eval()
        self._sides = sides
        self._digest = ModuleDigest(module)
        self.layout = module.layout

    @property
    def picture_side(self) -> int:
        """Pixels of the longer side of what the image tower sees."""
        return max(self._sides)

    @property
    def module(self) -> Any:  # noqa: ANN401 -- as `Backbone` declares it
        """Both towers, trainable; `encode` runs the same object, so it follows whatever training does."""
        return self._towers

    def fingerprint(self) -> str:
        """Return the hex SHA-256 of what can change a row; it changes when the module is trained.

        Where the weights came from does not matter, what they are does.
        """
        parts = {
            "format": ROW_FORMAT,
            "name": self.name,
            "weights": self._weights(),
            "dtype": str(self._towers.placement.dtype),
            **self._fingerprinted(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def encode(
        self, posts: Sequence[Encodable], *, batch_size: int = 64, workers: int = 0, progress: bool = False
    ) -> Encoded:
        """Return rows [B, D], each to the same bits whatever is beside it; equal texts are encoded once.

        As many texts and images go through the towers at once as the device takes best, whatever `batch_size`
        says: it would show in the last bits.
        """
        texts = [readable(post.text) for post in posts if has_text(post)]
        with_text = torch.tensor([has_text(post) for post in posts], dtype=torch.bool)
        with_image = torch.tensor([bool(post.images) for post in posts], dtype=torch.bool)
        text_block = torch.zeros(len(posts), self.layout.text_width)
        with inference(self._towers):
            if texts:
                place = {text: position for position, text in enumerate(dict.fromkeys(texts))}
                text_block[with_text] = self._embed_texts(list(place))[[place[t] for t in texts]]
            image_sum, failures = self._sum_images(posts, workers, progress=progress)
            rows = join(text_block, image_sum, with_text, with_image)
            rows[list(failures)] = torch.nan
        array: FeatureArray = rows.numpy()
        return Encoded(array, tuple(EncodeFailure(i, failures[i]) for i in sorted(failures)))

    def collate(self, posts: Sequence[Encodable], *, train: bool = False) -> dict[str, Tensor]:
        """Build `inputs` of `module`: its tokens, text_rows [N], pixels [M, 3, H, W], image_rows [M], size.

        For training, images are cropped at random. Raises as `Backbone.collate`.
        """
        to_pixels = self._augment if train else self._evaluate
        pixels: list[Tensor] = []
        for post in posts:
            try:
                pixels += [self._read(path, to_pixels) for path in post.images]
            except ImageError as error:
                raise ImageError(f"post {post.id!r}: {error}") from error
        text_rows = [index for index, post in enumerate(posts) if has_text(post)]
        image_rows = [index for index, post in enumerate(posts) for _ in post.images]
        return {
            **self._tokens([readable(posts[index].text) for index in text_rows]),
            "text_rows": torch.tensor(text_rows, dtype=torch.long),
            "size": torch.tensor(len(posts)),
            "pixels": torch.stack(pixels) if pixels else torch.zeros(0, 3, *self._sides),
            "image_rows": torch.tensor(image_rows, dtype=torch.long),
        }

    # ---- what each backbone says for itself ---------------------------------------------------------------

    def _weights(self) -> str:
        """Return a digest of the weights, as they are now."""
        return self._digest.hexdigest()

    def _fingerprinted(self) -> dict[str, Any]:
        """Return what else can change a row: tokenizer, limits, preprocessing, architecture."""
        raise NotImplementedError

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return texts, N >= 0 of them, as the module takes them; "ids" [N, L] among them."""
        raise NotImplementedError

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed distinct texts, all padded to one length, to unit embeddings [N, T] on the CPU."""
        device = self._towers.placement.device
        at_once, _ = _AT_ONCE.get(device.type, _AT_ONCE_ELSEWHERE)
        embedded = []
        for start in range(0, len(texts), at_once):
            part = list(texts[start : start + at_once])
            given = {name: tensor.to(device) for name, tensor in self._tokens(_filled(part, at_once)).items()}
            embedded.append(self._towers.embed_tokens(given).cpu()[: len(part)])
        return torch.cat(embedded)

    # ---- images -------------------------------------------------------------------------------------------

    def _read(self, path: Path, to_pixels: ToPixels) -> Tensor:
        return to_pixels(open_image(path, target_size=self.picture_side))

    def _sum_images(
        self, posts: Sequence[Encodable], workers: int, *, progress: bool
    ) -> tuple[Tensor, dict[int, str]]:
        """Return sums of unit image embeddings [B, I], and why posts with an unreadable image fail."""
        owners = [index for index, post in enumerate(posts) for _ in post.images]
        paths = [path for post in posts for path in post.images]
        image_sum = torch.zeros(len(posts), self.layout.image_width)
        failures: dict[int, str] = {}
        if not paths:
            return image_sum, failures
        device = self._towers.placement.device
        _, at_once = _AT_ONCE.get(device.type, _AT_ONCE_ELSEWHERE)
        batch: list[Tensor] = []
        rows: list[int] = []

        def flush() -> None:
            if batch:
                pixels = torch.stack(_filled(batch, at_once)).to(device)
                embedded = self._towers.embed_image(pixels).cpu()[: len(rows)]
                image_sum.index_add_(0, torch.tensor(rows), embedded)
                batch.clear()
                rows.clear()

        evaluate = self._evaluate  # made here, and not by each of the threads
        stream = prefetch_images(paths, lambda path: self._read(path, evaluate), workers)
        if progress:
            stream = ProgressBar(desc="images", total=len(paths), unit="image").over(stream)
        for owner, decoded in zip(owners, stream, strict=True):
            if isinstance(decoded, ImageError):
                failures.setdefault(owner, str(decoded))
                continue
            batch.append(decoded)
            rows.append(owner)
            if len(batch) == at_once:
                flush()
        flush()
        return image_sum, failures


def _filled(given: list[Item], size: int) -> list[Item]:
    """Return what is given, at least one, and the first of it again until there are `size`."""
    return given + given[:1] * (size - len(given))


def has_text(post: Encodable) -> bool:
    """Tell whether a post has a text; one of nothing but white space is none."""
    return bool(post.text.strip())


def readable(text: str) -> str:
    """Return a text with a question mark for half a surrogate pair, which no tokenizer takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def assemble(text: Tensor, text_rows: Tensor, image: Tensor, image_rows: Tensor, size: int) -> Tensor:
    """Assemble unit embeddings [N, T] and [M, I] to feature rows [B, D], float32, of `size` posts.

    `text_rows` [N] and `image_rows` [M] are the posts that they belong to; the images of one are averaged.
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


class ModuleDigest:
    """SHA-256 of a module's tensors, names included; recomputed only when a tensor has changed.

    The live tensors are hashed, not the file: a module that was trained, or got adapters, is another
    backbone, and its rows must not be mixed with the old ones in a cache.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._state: tuple[tuple[str, int, int], ...] = ()
        self._digest = ""

    def hexdigest(self) -> str:
        tensors = self._module.state_dict(keep_vars=True)
        state = tuple((name, tensor.data_ptr(), tensor._version) for name, tensor in tensors.items())
        if state == self._state:
            return self._digest
        digest = hashlib.sha256()
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
        self._digest, self._state = digest.hexdigest(), state
        return self._digest

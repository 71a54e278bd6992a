"""What a frozen vision tower made of every picture, kept on disk over epochs and trainings.

A picture that is known is neither decoded nor computed again. It is known by its bytes, by the frames' size
and by the base model's weights; one that stands alone in its post apart from one of an album, which some
processors cut up differently.

Shape legend: ``S``, ``N``, ``D`` as in `backbones.mllm.vision`; ``T`` tokens of a picture.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backbones.base import FeatureLayout
from backbones.mllm.base import Mllm
from backbones.mllm.vision import takes_features
from selftrain.agentps.frames import Frames, frame_keys
from selftrain.data.feature_store import KEY_BYTES, FeatureStore
from selftrain.errors import RecipeError

logger = logging.getLogger(__name__)
_WORD = 4  # bytes of a store's number
_NAME = re.compile(r"\d{1,9}(x\d{1,9}){2}-(float32|float16|bfloat16)")  # of a store: shape, type of its rows


class VisionCache:
    """Features of pictures by key; trainings that run at once may share a folder, that of all models.

    An `album` is "images" or "video", whose features are those of a whole album; `precision` is that the
    tower computes in. Beyond `limit` bytes of one model's features, pictures are computed each time.

    Raises:
        RecipeError: The model takes no features computed before.
        CacheError: The folder is damaged, or cannot be read or written.
    """

    def __init__(
        self, folder: Path, base: Mllm, frames: Frames, *, album: str, precision: str, limit: float
    ) -> None:
        if not takes_features(base.module):
            raise RecipeError(
                f"training.vision_cache: {base.name} takes no features computed before; leave the key out"
            )
        made = [base.fingerprint, asdict(frames) | {"max_pixels": None}, album, precision]
        self._fingerprint = hashlib.sha256(json.dumps(made).encode()).hexdigest()
        self._folder = folder / self._fingerprint[:16]
        self._album, self._frames, self._limit = album, frames, limit
        self._stores: dict[str, FeatureStore] = {}
        self._known: dict[bytes, tuple[str, int]] = {}
        self._full = False
        self.refresh()

    def refresh(self) -> None:
        """Take in what other processes have written."""
        found = [one.parent.name for one in self._folder.glob("*/meta.json")]
        for name in filter(_NAME.fullmatch, found):
            rows = self._store(name).index().items()
            self._known |= {key: (name, row) for key, row in rows}

    def keys(self, pictures: Sequence[Path]) -> list[bytes]:
        """Return the keys of a post's pictures, or of the one video that they are; raises as `frame_keys`."""
        keys = frame_keys(pictures, self._frames)
        if self._album == "video" and keys:
            return [hashlib.sha256(b"".join(keys)).digest()]
        return [hashlib.sha256(b"alone" + keys[0]).digest()] if len(keys) == 1 else keys

    def knows(self, keys: Sequence[bytes]) -> bool:
        """Return whether all of them are there."""
        return all(key in self._known for key in keys)

    def read(self, keys: Sequence[bytes]) -> Tensor:
        """Return the features [S, N, D] of pictures that are known, in the order given."""
        parts: dict[bytes, Tensor] = {}
        for name in sorted({self._known[key][0] for key in keys}):
            here = [key for key in dict.fromkeys(keys) if self._known[key][0] == name]
            rows = self._store(name).read(np.array([self._known[key][1] for key in here], dtype=np.int64))
            shape, kind = _parse(name)
            tensors = torch.from_numpy(rows).view(kind).view(len(here), *shape)
            parts |= zip(here, tensors, strict=True)
        return torch.cat([parts[key] for key in keys], dim=1)

    def add(self, keys: Sequence[bytes], features: Sequence[Tensor]) -> None:
        """Keep the features [S, T, D] of pictures; of those that are known, or beyond the limit, nothing."""
        new = {key: one for key, one in zip(keys, features, strict=True) if key not in self._known}
        for shape in {one.shape for one in new.values()}:
            here = {key: one for key, one in new.items() if one.shape == shape}
            if not self._full:
                self._append(list(here), torch.stack(list(here.values())).cpu())

    def _append(self, keys: list[bytes], rows: Tensor) -> None:
        """Keep features [n, S, T, D]."""
        if rows[0].numel() * rows.element_size() % _WORD:
            rows = rows.float()
        name = f"{'x'.join(map(str, rows.shape[1:]))}-{str(rows.dtype).removeprefix('torch.')}"
        words = rows.reshape(len(keys), -1).view(torch.float32).numpy()
        wanted = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
        store = self._store(name)
        with store.writing():
            places = store.find(wanted)  # another process may have kept some of them by now
            new = np.flatnonzero(places < 0)
            taken = sum(file.stat().st_size for file in self._folder.glob("*/*"))
            self._full = taken + words[new].nbytes > self._limit
            if self._full:
                logger.warning(
                    "%s is full: it may take training.vision_cache_gb = %g; further pictures are computed in"
                    " every epoch", self._folder, self._limit / 1e9,
                )  # fmt: skip
                return
            first = store.append([keys[one] for one in new], words[new])
        places[new] = first + np.arange(len(new))
        self._known |= {key: (name, row) for key, row in zip(keys, places.tolist(), strict=True)}

    def _store(self, name: str) -> FeatureStore:
        if name not in self._stores:
            shape, kind = _parse(name)
            words = int(np.prod(shape)) * kind.itemsize // _WORD
            # a row of nothing but numbers: the two that a layout counts for its flags are among them
            layout = FeatureLayout(0, words - 2)
            self._stores[name] = FeatureStore(self._folder / name, self._fingerprint, layout)
        return self._stores[name]


def _parse(name: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Return the shape [S, T, D] and the type of a store's rows; its name says them."""
    shape, _, kind = name.partition("-")
    found: torch.dtype = getattr(torch, kind)
    return tuple(map(int, shape.split("x"))), found

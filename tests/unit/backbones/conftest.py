"""Posts with real files, and backbones small enough for unit tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}


@dataclass(frozen=True)
class SomePost:
    id: str
    text: str = ""
    images: tuple[Path, ...] = ()


@pytest.fixture(scope="session")
def post() -> type[SomePost]:
    return SomePost


@pytest.fixture
def picture(tmp_path) -> Callable[[str], Path]:
    """Name -> a noise image of its own."""

    def draw(name: str) -> Path:
        path = tmp_path / name
        seed = sum(name.encode())
        noise = np.random.RandomState(seed).randint(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        return path

    return draw


@pytest.fixture(scope="session")
def embedded():
    from backbones import load_backbone

    return load_backbone("minilm_efficientnet", device="cpu")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> Path:
    """A folder with the configuration of a tiny CLIP and its random weights in three containers."""
    import torch
    from safetensors.torch import save_file

    from backbones.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.manual_seed(0)
    state = open_clip.create_model("tiny-clip").state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "weights.safetensors")
    # as open_clip's own trainer saves it
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "weights.pt"
    )
    return folder

"""What can be told of a model before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agents.errors import ServingError

MOST_IMAGES = 16
"""Images of one prompt that we ask servers to take."""

# parts of the names under which architectures configure their eyes
_SIGHT = ("vision", "visual", "image", "img_processor", "mm_")


def model_folder(model: str) -> Path | None:
    """The folder that `model` names; None for a name on a hub, which is looked up only by the server.

    Raises:
        ServingError: `model` is a path, and there is no model.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ServingError(f"{path} is no model: expected a config.json in it. {_EXPECTED}")
        return path
    if model.startswith(("/", "./", "../", "~")):
        raise ServingError(f"there is no model folder {path}. {_EXPECTED}")
    return None


_EXPECTED = (
    "Name a folder as save_pretrained writes it (config.json, weights as safetensors, tokenizer), or a model"
    " of the Hugging Face hub as ORGANISATION/NAME"
)


def takes_images(folder: Path) -> bool:
    """Whether a model's configuration speaks of images.

    Raises:
        ServingError: The configuration cannot be read.
    """
    config = _read_json(folder / "config.json")
    return any(part in key for key in config for part in _SIGHT)


def adapter_rank(folder: Path) -> int:
    """The rank of a LoRA adapter.

    Raises:
        ServingError: `folder` holds none.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ServingError(
            f"{folder} is no adapter: expected a folder as peft writes it, with adapter_config.json"
        )
    rank = _read_json(file).get("r")
    if not isinstance(rank, int) or rank < 1:
        raise ServingError(f"{file} states the rank r as {rank!r}: expected a number above 0")
    return rank


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ServingError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ServingError(f"{file} holds {type(found).__name__}: expected a JSON object")
    return found

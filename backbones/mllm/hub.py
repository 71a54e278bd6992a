"""Any model that transformers loads as image-text-to-text: LLaVA-OneVision, Qwen2.5-VL and their kin.

The family's own processor lays out the chat and expands the images; the hidden states are those of the model
below the vocabulary's layer, which is not computed.

Shape legend: ``B`` prompts, ``L`` tokens, ``M`` images, ``D`` width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from backbones.errors import PromptFitError, WeightsError
from backbones.loading import quiet_loading
from backbones.mllm.base import Mllm, Padding, linear_layers
from backbones.mllm.prompts import Inputs, Prompt, Wording, Words, add_answer_token
from backbones.torchvision_compat import ensure_torchvision

Album = Literal["images", "video"]
_TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower")


class HubReader:
    """Prompts through the processor of a model.

    Args:
        processor: Of transformers.
        wording: The words around every post.
        padding: The side that is padded.
        max_tokens: Of words, text and the chat's marks, images aside.
        album: Whether several pictures are given as images or as frames of one video, which costs far fewer
            tokens a picture (LLaVA-OneVision: 196 instead of 730).
    """

    def __init__(
        self,
        processor: Any,  # noqa: ANN401
        wording: Wording,
        padding: Padding,
        max_tokens: int,
        album: Album = "images",
    ) -> None:
        self._processor, self._padding, self._album = processor, padding, album
        tokenizer = processor.tokenizer
        marks = len(tokenizer(self._chat("", 0), add_special_tokens=False)["input_ids"])
        self.words = Words(tokenizer, wording, max_tokens, marks)
        self._per_image: int | None = None

    def length(self, text: str, images: int) -> int:
        """Return an estimate: pictures count as many tokens as the first one that was read."""
        each = self._per_image if self._per_image is not None else 256
        return self.words.length(text) + images * each

    def read(self, prompts: Sequence[Prompt]) -> Inputs:
        texts = [self._chat(self.words.around(one.text), len(one.images)) for one in prompts]
        pictures = [list(one.images) for one in prompts if one.images]
        media: dict[str, Any] = {}
        if pictures and self._album == "images":
            media = {"images": [image for album in pictures for image in album]}
        elif pictures:
            media = {"videos": [_frames(album) for album in pictures]}
        batch = self._processor(
            text=texts, **media, padding=True, padding_side=self._padding, return_tensors="pt"
        )
        inputs: Inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        self.words.check(inputs)
        self._note_images(prompts, inputs)
        return inputs

    def save(self, folder: Path) -> None:
        self._processor.save_pretrained(folder)

    def _chat(self, words: str, images: int) -> str:
        kinds = ["image"] * images if self._album == "images" else ["video"] * bool(images)
        content = [{"type": kind} for kind in kinds] + [{"type": "text", "text": words}]
        chat = [{"role": "user", "content": content}]
        try:
            text = self._processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        except (ValueError, AttributeError) as error:
            raise PromptFitError(
                f"the model's processor cannot lay out a chat ({error}): expected one with a chat template"
            ) from error
        return str(text)

    def _note_images(self, prompts: Sequence[Prompt], inputs: Inputs) -> None:
        first = next((i for i, one in enumerate(prompts) if one.images), None)
        if self._per_image is None and first is not None:
            images = int(inputs["attention_mask"][first].sum()) - self.words.length(prompts[first].text)
            self._per_image = max(images // len(prompts[first].images), 1)


def load(name: str, *, revision: str = "main", dtype: str = "auto", album: Album = "images") -> Mllm:
    """Load a pretrained model, by its name on a hub or by its folder; on the CPU.

    Args:
        name: For instance "llava-hf/llava-onevision-qwen2-0.5b-ov-hf".
        revision: Of the weights on the hub.
        dtype: "auto" (as saved), "float32" or "bfloat16".
        album: See `HubReader`.

    Raises:
        WeightsError: No such model, or one that transformers does not load as image-text-to-text.
    """
    ensure_torchvision()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        with quiet_loading():
            processor = AutoProcessor.from_pretrained(name, revision=revision)  # type: ignore[no-untyped-call]
            whole = AutoModelForImageTextToText.from_pretrained(name, revision=revision, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{name} could not be loaded as an image-text-to-text model:"
            f" {str(error).splitlines()[0].rstrip('.')}. Expected a folder or a name on the hub, for instance"
            " llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
        ) from error
    return from_parts(name, whole, processor, album=album)


def from_parts(name: str, whole: Any, processor: Any, *, album: Album = "images") -> Mllm:  # noqa: ANN401
    """Return the same of a model and a processor at hand.

    Args:
        name: For messages and recipes.
        whole: A ``...ForConditionalGeneration``.
        processor: Its processor.
        album: See `HubReader`.
    """

    def write(_: nn.Module, folder: Path) -> None:
        with quiet_loading():
            whole.save_pretrained(folder)

    add_answer_token(whole, processor.tokenizer)
    module = whole.base_model
    for parameter in whole.parameters():
        parameter.requires_grad_(False)
    tower = next((name for name in _TOWERS if hasattr(module, name)), None)
    text = whole.config.get_text_config()
    return Mllm(
        name=name,
        module=module.eval(),
        width=text.hidden_size,
        tokenizer=processor.tokenizer,
        reader=lambda wording, padding, budget: HubReader(processor, wording, padding, budget, album),
        language_layers=linear_layers(module, "language_model"),
        vision_layers=linear_layers(module, tower) if tower else (),
        new_parts=(),
        fingerprint=_fingerprint(module),
        write=write,
    )


def _frames(album: Sequence[Any]) -> Any:  # noqa: ANN401
    """Return pictures of one size as [frames, 3, height, width]."""
    from torchvision.transforms.functional import pil_to_tensor

    return torch.stack([pil_to_tensor(image) for image in album])


def _fingerprint(module: nn.Module) -> str:
    """Return the digest of a few numbers of every tensor: other weights of the same name are another base."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:64].float().numpy().tobytes())
    return digest.hexdigest()

"""The multimodal model that needs no download: EfficientNet-Lite0, a new projector, SmolLM2-135M.

The feature map of an image, 7 x 7 x 1280, is averaged to `SIDE` x `SIDE` cells; a two-layer network makes a
token of each. The tower and the language model are pretrained, the projector is not.

Shape legend: ``B`` prompts, ``L`` tokens, ``M`` images, ``D = 576``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.errors import WeightsError
from backbones.loading import quiet_loading
from backbones.minilm_efficientnet import IMAGE_SHA256, image_tower
from backbones.mllm.base import Mllm, Padding, linear_layers
from backbones.mllm.prompts import ONE_TURN, Inputs, Prompt, Turns, Wording, Words, add_answer_token
from backbones.smollm2 import SHA256, load_smollm2
from backbones.towers import freeze_batch_norm

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutputWithPast

NAME = "smollm2_efficientnet"
IMAGE_TOKEN = "<image>"
SIDE = 4
IMAGE_TOKENS = SIDE * SIDE
PIXELS = 224
_MEAN = _STD = 0.5  # the tower wants [-1, 1]
_MAP_WIDTH = 1280
_BEFORE, _AFTER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
_ROUND = Turns(_AFTER, f"<|im_end|>\n{_BEFORE}")


class Projector(nn.Module):
    """Image cells [..., 1280] to embeddings [..., D] of the size that the language model is used to."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_MAP_WIDTH, elementwise_affine=False)
        self.first = nn.Linear(_MAP_WIDTH, width)
        self.second = nn.Linear(width, width)
        nn.init.normal_(self.second.weight, std=2 * scale / width**0.5)
        nn.init.zeros_(self.second.bias)

    def forward(self, cells: Tensor) -> Tensor:
        states: Tensor = self.second(F.gelu(self.first(self.norm(cells))))
        return states


class SmolLM2EfficientNet(nn.Module):
    """``forward`` as a model of transformers: ids, mask and pixels to hidden states."""

    def __init__(self, tower: nn.Module, language_model: Any, image_id: int) -> None:  # noqa: ANN401
        super().__init__()
        self.tower: Any = tower
        table = language_model.get_input_embeddings().weight
        self.projector = Projector(table.shape[1], float(table.detach().float().std()))
        self.language_model = language_model
        self.image_id = image_id

    def train(self, mode: bool = True) -> SmolLM2EfficientNet:
        super().train(mode)
        freeze_batch_norm(self)
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token embeddings, as peft asks for it."""
        table: nn.Module = self.language_model.get_input_embeddings()
        return table

    def activation_checkpointing_enable(self, settings: dict[str, Any] | None = None) -> None:
        """Trade time for memory in the language model."""
        self.language_model.activation_checkpointing_enable(settings)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        use_cache: bool = False,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
    ) -> BaseModelOutputWithPast:
        """Ids and mask [B, L], pixels [M, 3, 224, 224] in the order of the image tokens, or cells.

        The projector is trained: what is taken and given as features lies before it.
        """
        is_image = input_ids == self.image_id
        # the image token has no row of its own: what stands there is replaced
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        cells = None if pixel_values is None else self._cells(pixel_values)
        if mm_encoder_outputs is not None:
            cells = mm_encoder_outputs["image"].pooler_output[0]
        if cells is not None:
            places = is_image.unsqueeze(-1).expand_as(embeddings)
            embeddings = embeddings.masked_scatter(places, self.projector(cells).to(embeddings.dtype))
        positions = (attention_mask.cumsum(1) - 1).clamp_min(0)
        output: BaseModelOutputWithPast = self.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=positions,
            use_cache=use_cache,
        )
        output.image_outputs = None if cells is None else SimpleNamespace(pooler_output=cells)
        return output

    def _cells(self, pixels: Tensor) -> Tensor:
        """Return [M, SIDE^2, 1280], row by row."""
        maps = self.tower.forward_features(pixels.contiguous(memory_format=torch.channels_last))
        return F.adaptive_avg_pool2d(maps.float(), SIDE).flatten(2).transpose(1, 2)


class SmolLM2Reader:
    """Prompts of SmolLM2's chat: the images' tokens, the words, the assistant's turn."""

    def __init__(self, tokenizer: Any, wording: Wording, padding: Padding, max_tokens: int) -> None:  # noqa: ANN401
        self._tokenizer, self._padding = tokenizer, padding
        marks = len(tokenizer(_BEFORE + _AFTER, add_special_tokens=False)["input_ids"])
        self.words = Words(tokenizer, wording, max_tokens, marks, _ROUND if wording.rounds else ONE_TURN)

    def length(self, text: str, images: int) -> int:
        return self.words.length(text) + images * IMAGE_TOKENS

    def read(self, prompts: Sequence[Prompt]) -> Inputs:
        texts = [
            _BEFORE + IMAGE_TOKEN * (IMAGE_TOKENS * len(one.images)) + self.words.around(one.text) + _AFTER
            for one in prompts
        ]
        batch = self._tokenizer(
            texts, add_special_tokens=False, padding=True, padding_side=self._padding, return_tensors="pt"
        )
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        self.words.check(inputs)
        images = [pixels(image) for one in prompts for image in one.images]
        return inputs | ({"pixel_values": torch.stack(images)} if images else {})

    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)


def pixels(image: Image.Image) -> Tensor:
    """Return [3, 224, 224] in [-1, 1]; the whole picture, squeezed: a meme's words stand at its edges."""
    from torchvision.transforms.functional import pil_to_tensor

    small = image.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    scaled: Tensor = (pil_to_tensor(small).float() / 255 - _MEAN) / _STD
    return scaled


def check_given(dtype: str, album: str) -> None:
    """Refuse, with a WeightsError, what `load_mllm` takes of other models and this one cannot do."""
    for name, given, can in (("dtype", dtype, ("auto", "float32")), ("album", album, ("images",))):
        if given not in can:
            raise WeightsError(
                f"{name} is {given!r}, and {NAME} has only {' or '.join(map(repr, can))}: leave it out, or"
                " name another base model"
            )


def load(seed: int = 0) -> Mllm:
    """Load the model on the CPU, in float32, half a minute's work; WeightsError: a package is missing."""
    model, tokenizer = load_smollm2()
    return from_parts(NAME, model.model, tokenizer, seed=seed)


def from_parts(name: str, language_model: Any, tokenizer: Any, *, seed: int = 0) -> Mllm:  # noqa: ANN401
    """Return the same around a language model at hand, without its vocabulary's layer; changed in place.

    The tokenizer is SmolLM2's, and changed too.
    """
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    image_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    add_answer_token(language_model, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = SmolLM2EfficientNet(image_tower(), language_model, image_id)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return Mllm(
        name=name,
        module=module.eval(),
        width=language_model.config.hidden_size,
        tokenizer=tokenizer,
        reader=lambda wording, padding, budget: SmolLM2Reader(tokenizer, wording, padding, budget),
        language_layers=linear_layers(module, "language_model"),
        vision_layers=tuple(
            name for name, layer in module.named_modules()
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and name.startswith("tower.")
        ),
        new_parts=("projector",),
        fingerprint=hashlib.sha256(f"{SHA256} {IMAGE_SHA256} {SIDE}".encode()).hexdigest(),
        write=_write,
        positions=language_model.config.max_position_embeddings,
    )  # fmt: skip


def _write(module: nn.Module, folder: Path) -> None:
    """Write the language model as one of transformers, tower and projector beside it."""
    from safetensors.torch import save_file

    assert isinstance(module, SmolLM2EfficientNet)
    with quiet_loading():
        module.language_model.save_pretrained(folder)
    for part in ("tower", "projector"):
        tensors = {name: t.contiguous() for name, t in module.get_submodule(part).state_dict().items()}
        (folder / part).mkdir()
        save_file(tensors, folder / part / "model.safetensors")

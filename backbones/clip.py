"""Any open_clip model as a backbone: its own preprocessing, its own tokenizer, both towers.

Texts longer than the model's context (77 tokens for most) are cut by its tokenizer; the start is kept.

Shape legend: ``B`` posts, ``N`` texts, ``C`` context length, ``M`` images, ``T = I`` embedding width,
``D = T + I + 2``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.base import FeatureLayout
from backbones.errors import WeightsError
from backbones.loading import Placement, place
from backbones.torchvision_compat import ensure_torchvision
from backbones.towers import PROBES, Towers, TwoTowers, inference

ensure_torchvision()
import open_clip  # noqa: E402
from open_clip.factory import parse_model_name  # noqa: E402
from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: E402

_CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin")
Tokenize = Callable[[list[str]], Tensor]
"""From texts, N of them, to ids [N, C]."""
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
# set by `CLIP._load`
_NEEDS_WEIGHTS = frozenset(
    {
        *("_towers", "_evaluate", "_augment", "_sides", "_digest", "layout"),
        *("_module", "_tokenizer", "_architecture", "_preprocessing"),
    }
)


class CLIPModule(Towers):
    """An open_clip model."""

    def __init__(self, model: nn.Module, placement: Placement) -> None:
        super().__init__(placement)
        self.model: Any = model

    def embed_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Embed token ids [N, C] to unit embeddings [N, T]."""
        with self.placement.autocast():
            embedded = self.model.encode_text(inputs["ids"])
        return F.normalize(embedded.float(), dim=1)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Embed pixels [M, 3, H, W] to unit embeddings [M, I]."""
        with self.placement.autocast():
            embedded = self.model.encode_image(pixels)
        return F.normalize(embedded.float(), dim=1)


class CLIP(TwoTowers):
    """An open_clip model: both towers, its own preprocessing and tokenizer (see `Backbone` for the rows).

    ``CLIP("ViT-L-14", "openai")`` loads nothing yet: the weights are needed at the first look at rows, layout
    or fingerprint, on this machine or by a network once. A row has ``T + I + 2`` numbers, 768 + 768 + 2 for
    ViT-L-14.

    Args:
        model: A model name of open_clip, or ``local-dir:FOLDER`` / ``hf-hub:OWNER/NAME`` (`weights` is then
            unused).
        weights: A pretraining tag of that model, or the path of a checkpoint (safetensors, or a torch file,
            of which only tensors are read).
        like: For a checkpoint path: the tag whose preprocessing and activation it shares. None: the model's
            own configuration and CLIP's usual preprocessing.
        device: "auto", "cpu", "cuda".
        dtype: Of the towers' products: "auto" (fp32 on a CPU, else bf16 or fp16), "fp32", "bf16", "fp16".

    Raises:
        WeightsError: an unknown model or tag, at once; at the first look, weights that are not on this
            machine and cannot be fetched, or that do not fit the model.
        ValueError: another dtype, or "cuda" where there is none.
    """

    def __init__(
        self,
        model: str = "ViT-L-14",
        weights: str | Path = "openai",
        *,
        like: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.model, self.weights, self.like, self.device, self.dtype = model, weights, like, device, dtype
        self.name = "clip:local-dir" if model.startswith("local-dir:") else f"clip:{model}"
        self._placement = place(device, dtype)
        if parse_model_name(model)[0] is None:
            _check_choice(model, weights, like)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever needs the weights
        """Load the weights at the first look at what needs them: naming a model is to cost nothing."""
        if name not in _NEEDS_WEIGHTS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._load()
        return getattr(self, name)

    def _load(self) -> None:
        module = CLIPModule(load_model(self.model, self.weights, self.like), self._placement)
        module.to(module.placement.device).eval()
        self._tokenizer = _load_tokenizer(self.model)
        self._architecture = _architecture(self.model, self.weights, self.like)
        # what belongs to the loaded weights
        self._preprocessing: dict[str, Any] = dict(open_clip.get_model_preprocess_cfg(module.model))
        size = self._preprocessing["size"]
        sides = (size, size) if isinstance(size, int) else (size[0], size[1])
        module.layout = _measure(module, self._tokenizer, sides)
        config = PreprocessCfg(**self._preprocessing)
        self._evaluate, self._augment = (
            image_transform_v2(config, is_train=train) for train in (False, True)
        )
        super().__init__(module, sides)
        self._module = module

    def _fingerprinted(self) -> dict[str, Any]:
        probes = torch.cat([self._tokenizer([text]) for text in PROBES]).numpy()
        return {
            "architecture": self._architecture,
            "preprocessing": self._preprocessing,
            "tokenizer": hashlib.sha256(probes.astype("<i8").tobytes()).hexdigest(),
            "max tokens": probes.shape[1],
        }

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"ids": self._tokenizer(list(texts)) if texts else torch.zeros(0, 1, dtype=torch.long)}

    def lora_targets(self) -> list[str]:
        """Return names for ``peft.LoraConfig(target_modules=...)``: the linear layers that are really called.

        ``nn.MultiheadAttention`` hands its weights to a function and never calls its ``out_proj``, so an
        adapter there would be ignored; those layers are left out, the feed-forward ones remain.
        """
        unused = {
            f"{name}.out_proj"
            for name, part in self._module.named_modules()
            if isinstance(part, nn.MultiheadAttention)
        }
        linear = (name for name, part in self._module.named_modules() if isinstance(part, nn.Linear))
        return sorted(name for name in linear if name not in unused)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Trade time for memory in the backward pass; takes effect in training mode."""
        self._module.model.set_grad_checkpointing(enabled)


def _measure(module: CLIPModule, tokenizer: Tokenize, sides: tuple[int, int]) -> FeatureLayout:
    """Measure the widths that the towers really give, seen on one empty text and one black image."""
    device = module.placement.device
    with inference(module):
        text = module.embed_tokens({"ids": tokenizer([""]).to(device)})
        image = module.embed_image(torch.zeros(1, 3, *sides, device=device))
    return FeatureLayout(text.shape[1], image.shape[1])


def load_model(model: str, weights: str | Path, like: str | None) -> nn.Module:
    """Load the model with its weights, on the CPU in float32; the global random state stays what it was."""
    with_schema = parse_model_name(model)[0] is not None
    tag = {} if with_schema else _check_choice(model, weights, like)
    try:
        with torch.random.fork_rng(devices=[]):  # the weights are drawn before they are read
            loaded: nn.Module = open_clip.create_model(
                model,
                pretrained=None if with_schema else str(weights),
                require_pretrained=True,
                weights_only=True,
                # The tag says which activation its weights were trained with; open_clip would only warn.
                force_quick_gelu=bool(tag.get("quick_gelu", False)),
                force_preprocess_cfg={key: tag[key] for key in _PREPROCESSING if tag.get(key) is not None},
            )
    except Exception as error:
        # The hub, its client, torch.load and safetensors each raise types of their own.
        raise WeightsError(_explain(model, weights, error)) from error
    return loaded


def _load_tokenizer(model: str) -> Tokenize:
    try:
        tokenizer: Tokenize = open_clip.get_tokenizer(model)
    except Exception as error:
        raise WeightsError(
            f"the tokenizer of {model} could not be loaded: {_first_line(error)}. It comes from the Hugging "
            "Face hub: run once with a network, or use local-dir:FOLDER with the tokenizer's files in FOLDER."
        ) from error
    return tokenizer


def _architecture(model: str, weights: str | Path, like: str | None) -> dict[str, Any]:
    """Return what the weights do not say: heads, activation, pooling. JSON values only."""
    schema, identifier = parse_model_name(model)
    if schema == "local-dir":
        config: dict[str, Any] = json.loads((Path(identifier) / "open_clip_config.json").read_text("utf-8"))
        return dict(config["model_cfg"])
    if schema is not None:
        return {"hub": identifier}
    tag = open_clip.get_pretrained_cfg(model, like or str(weights))
    return {**(open_clip.get_model_config(model) or {}), "tag_quick_gelu": bool(tag.get("quick_gelu", False))}


def _check_choice(model: str, weights: str | Path, like: str | None) -> dict[str, Any]:
    """Return the configuration of the tag that the weights bear or resemble; {} when there is none."""
    if open_clip.get_model_config(model) is None:
        raise WeightsError(
            f"open_clip has no model {model!r}; python -c 'import open_clip; open_clip.list_models()'"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if like and not open_clip.is_pretrained_cfg(model, like):
        raise WeightsError(f"like={like!r} is no tag of {model}; expected one of {', '.join(tags) or 'none'}")
    if open_clip.is_pretrained_cfg(model, str(weights)):
        return dict(open_clip.get_pretrained_cfg(model, str(weights)))
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(
            f"weights {str(weights)!r}: neither a file nor a tag of {model} ({', '.join(tags) or 'none'})"
        )
    if path.suffix not in _CHECKPOINTS:
        raise WeightsError(
            f"{path}: a checkpoint must end in {', '.join(_CHECKPOINTS)}; convert it to safetensors"
        )
    return dict(open_clip.get_pretrained_cfg(model, like)) if like else {}


def _explain(model: str, weights: str | Path, error: Exception) -> str:
    if not Path(weights).is_file() and ("download" in str(error) or "Hub" in str(error)):
        return (
            f"the weights {str(weights)!r} of {model} are not on this machine and could not be fetched. Run "
            "once with a network, or fetch the checkpoint elsewhere and give its path as weights (with "
            f"like={str(weights)!r}); the backbone 'minilm_efficientnet' needs no download. "
            f"({_first_line(error)})"
        )
    return (
        f"the weights {str(weights)!r} do not load into {model}: {_first_line(error)}. Expected safetensors, "
        "or a torch file that holds only tensors, of exactly this architecture."
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__

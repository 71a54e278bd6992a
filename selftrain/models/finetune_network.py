"""A backbone and a head as one network, trained whole or through low-rank adapters, and its file.

Shape legend: ``B`` posts, ``D`` width of a feature row, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from backbones.base import Backbone, Encodable, Encoded
from backbones.torchvision_compat import ensure_torchvision
from selftrain._util.types import Float32Array, Json
from selftrain.errors import RunStateError, TrainingError
from selftrain.models.calibration import Calibration, read_calibration
from selftrain.models.head import Head, Scaling, check_head, logits_of
from selftrain.models.model_file import read_model, write_model
from selftrain.models.train_loop import EpochResult

Mode = Literal["full", "lora"]
Precision = Literal["auto", "fp32", "bf16"]


class NetworkShape(NamedTuple):
    """What must be known to build the network that some weights belong to, the backbone aside."""

    # "full": every weight of the backbone is trained; "lora": low-rank adapters beside frozen ones
    mode: Mode = "full"
    head: str = "mlp"  # "linear" or "mlp"; `hidden` and `dropout` are those of the mlp
    hidden: int = 32
    dropout: float = 0.3
    # lora_rank, lora_alpha: of the adapters, whose output is scaled by alpha / rank; unread under "full"
    lora_rank: int = 16
    lora_alpha: int = 32
    outputs: int = 1  # logits that the head computes: 1 for two classes, else one a class


class Network(nn.Module):
    """Backbone and head; ``forward(inputs)`` gives raw logits [B, K], float32.

    The backbone, freshly built, is `source`, which collates and encodes; its fingerprint before anything was
    adapted or trained is `pretrained`. The head, on its device, is None until `attach` or `put`. A
    `precision` of "auto" multiplies in bfloat16 on a GPU that has it, else in float32. Weights stay float32.
    TrainingError: adapters are asked for and the backbone names no place for them.
    """

    def __init__(self, backbone: Backbone, architecture: NetworkShape, precision: Precision = "auto") -> None:
        super().__init__()
        self.source = backbone
        self.architecture = architecture
        self.precision = precision
        self.pretrained = backbone.fingerprint()
        if architecture.mode == "lora":
            _adapt(backbone, architecture)
        else:
            backbone.module.requires_grad_(True)
        self.backbone: nn.Module = backbone.module
        self.head: Head | None = None

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def new_head(self, scaling: Scaling) -> Head:
        """Build an untrained head of this architecture, on the CPU."""
        shape = self.architecture
        return Head(scaling, shape.head, shape.hidden, shape.dropout, shape.outputs)

    def attach(self, head: Head) -> None:
        """Make `head` this network's."""
        self.head = head.to(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the backbone runs."""
        half = self.precision == "bf16"
        if self.precision == "auto" and self.device.type == "cuda":
            half = torch.cuda.is_bf16_supported()
        return torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext()

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Turn the `collate` of B posts into raw logits [B, K] with gradients."""
        assert self.head is not None, "a head is attached before the network is used"
        with self.autocast():
            rows = self.backbone(inputs)
        logits: Tensor = self.head(rows.float())  # outside: it is small, and calibrated to the digit
        return logits

    def encode(self, posts: Sequence[Encodable], batch_size: int, workers: int) -> Encoded:
        """Encode posts to rows [B, D] without gradients; NaN, and a reason, for one that cannot be read."""
        with self.autocast():
            return self.source.encode(posts, batch_size=batch_size, workers=workers)

    def classify(self, rows: Float32Array) -> Float32Array:
        """Return raw logits [B, K] of rows [B, D], without dropout."""
        assert self.head is not None, "a head is attached before the network is used"
        self.head.eval()
        return logits_of(self.head, rows)

    def portable(self) -> dict[str, Tensor]:
        """Return copies on the CPU of all that a fitted model consists of, by name.

        Under "full" every weight and buffer, as training moved them; under "lora" adapters and head alone.
        """
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self._own().items()}

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what `portable` gave, head included; RunStateError: tensors that do not fit."""
        fields = [f"head.{field}" for field in Scaling._fields]
        missing = [name for name in fields if name not in weights]
        problem = f"it lacks {', '.join(missing)}" if missing else ""
        if not missing:
            # copies: the head owns its buffers, the fitted model keeps its own
            self.attach(self.new_head(Scaling(*(weights[name].numpy().copy() for name in fields))))
            wrong = sorted(self._own().keys() ^ weights.keys())
            problem = f"{len(wrong)} tensors are missing or unknown, {wrong[0]} first" if wrong else ""
        if not problem:
            try:
                self.load_state_dict(dict(weights), strict=False)
            except RuntimeError as error:
                problem = str(error)
        if problem:
            raise RunStateError(f"the saved weights do not fit {self.source.name}: {problem}")

    def _own(self) -> dict[str, Tensor]:
        state = self.state_dict(keep_vars=True)
        if self.architecture.mode == "full":
            return state
        return {
            name: value for name, value in state.items() if value.requires_grad or name.startswith("head.")
        }


def _adapt(backbone: Backbone, architecture: NetworkShape) -> None:
    """Put adapters into the backbone's module, in place, and freeze the rest."""
    targets = getattr(backbone, "lora_targets", None)
    if targets is None:
        raise TrainingError(
            f'the backbone {backbone.name} names no layers for adapters: set classifier.mode = "full"'
        )
    ensure_torchvision()  # peft imports torchvision
    import peft

    config = peft.LoraConfig(
        r=architecture.lora_rank, lora_alpha=architecture.lora_alpha, target_modules=targets()
    )
    peft.inject_adapter_in_model(config, backbone.module)


# ---- a fitted network and its file ---------------------------------------------------------------------

FORMATS: dict[str, str] = {"full": "selftrain-full-2", "lora": "selftrain-lora-2"}


@dataclass(frozen=True, eq=False)
class FinetunedClassifier:
    """A fitted network's weights with their calibration. Live networks are the trainer's: they fill a GPU."""

    weights: Mapping[str, Tensor]  # what `Network.portable` gave, on the CPU
    architecture: NetworkShape  # of the network that they belong to
    pretrained: str  # fingerprint of the backbone that training began from
    calibration: Calibration  # from the validation posts
    curve: tuple[EpochResult, ...] = ()  # validation macro-F1 and loss parts over the epochs
    best_epoch: int = 0  # the epoch whose weights these are

    def save(self, file: Path, metadata: Mapping[str, Any]) -> None:
        """Write safetensors; all but the weights goes into the header, with `metadata`."""
        own = {
            "format": FORMATS[self.architecture.mode],
            "architecture": self.architecture._asdict(),
            "pretrained": self.pretrained,
            "calibration": self.calibration._asdict(),
        }
        write_model(file, dict(metadata) | own, self.weights)


def load_finetuned(file: Path) -> tuple[FinetunedClassifier, Json]:
    """Load a saved model and its metadata, without a backbone; RunStateError: no such model."""
    weights, header = read_model(file, list(FORMATS.values()))
    try:
        shape = NetworkShape(**header.pop("architecture"))
        pretrained = header.pop("pretrained")
        model = FinetunedClassifier(weights, shape, pretrained, read_calibration(header, shape.outputs))
        _check_sizes(weights, model.architecture)
    except (KeyError, TypeError, ValueError) as error:
        raise RunStateError(
            f"the header of {file} is incomplete ({error}): the run folder is damaged"
        ) from error
    return model, header


def _check_sizes(weights: Mapping[str, Tensor], shape: NetworkShape) -> None:
    """Refuse, with a ValueError, an architecture that asks for more room than its weights take."""
    head = {name.removeprefix("head."): one for name, one in weights.items() if name.startswith("head.")}
    check_head(head, shape.head, shape.hidden, shape.outputs)
    if shape.mode not in FORMATS:
        raise ValueError(f"its header says mode {shape.mode!r}, expected one of {', '.join(FORMATS)}")
    ranks = {len(one) for name, one in weights.items() if ".lora_A." in name}
    if shape.mode == "lora" and ranks != {shape.lora_rank}:
        raise ValueError(f"its adapters are of rank {sorted(ranks)}, its header says {shape.lora_rank!r}")

"""A run's best classifier as one ONNX file: towers, rows, head and calibration in one graph.

The file carries what scoring needs beside the graph (classes, tokenizer, preprocessing) as metadata, so that
`selftrain.models.onnx_predictor` reads posts with it where torch is not installed.

Shape legend: ``B`` posts, ``N`` texts, ``L`` tokens, ``M`` images, ``D`` width of a row, ``K`` classes.
"""

from __future__ import annotations

import json
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.loading import Placement
from backbones.minilm_efficientnet import MAX_TOKENS, MiniLMEfficientNet
from selftrain.errors import ServingError
from selftrain.models.calibration import Calibration
from selftrain.models.head import Head
from selftrain.models.onnx_predictor import FORMAT, METADATA_KEY
from selftrain.models.run_predictor import RunPredictor
from selftrain.store import atomic

OUTPUTS = ("logits", "probabilities")
_INPUTS = ("ids", "mask", "text_rows", "pixels", "image_rows", "size")


def export_onnx(folder: Path, file: Path, *, head_only: bool = False) -> tuple[str, ...]:
    """Write the best classifier of a run, and return the names of the graph's inputs in order.

    The whole graph takes what `collate` of `MiniLMEfficientNet` gives: ids and mask [N, L], text_rows [N],
    pixels [M, 3, H, W], image_rows [M], size []. There has to be one text at least; where no post has one,
    any token with text_rows -1 belongs to no post. The head alone (`head_only`) takes features [B, D]. Both
    give calibrated logits [B, K] and probabilities [B, K], in the order of the metadata's classes. Adapters
    are merged into the weights that they stand beside.

    Raises:
        ServingError: The extra `onnx` is missing, or the backbone cannot be exported.
        RunStateError, RunMismatchError, BackboneError: See `RunPredictor.load`.
    """
    try:
        import onnx  # noqa: F401 -- found missing before minutes of work, not after
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ServingError(f"{error.name} is not installed: pip install 'selftrain[onnx]'") from error
    model = RunPredictor.load(folder)
    if head_only and model.network is not None:
        raise ServingError(
            f"{folder} was fine-tuned: its head reads features that no other backbone gives. Leave out"
            " --head-only"
        )
    graph = _head_graph(model) if head_only else _whole_graph(model)
    _write(graph, _metadata(model, head_only=head_only), file)
    return graph.names


class _Graph(NamedTuple):
    """What `torch.onnx.export` is given."""

    module: nn.Module
    names: tuple[str, ...]
    example: tuple[Tensor, ...]
    shapes: tuple[dict[int, Any], ...]


class _Calibrated(nn.Module):
    """A head with its calibration: rows [B, D] to logits and probabilities [B, K], positive class first."""

    offsets: Tensor

    def __init__(self, head: Head, calibration: Calibration, classes: int) -> None:
        super().__init__()
        self.head = head
        self.slope, offsets = calibration
        *others, positive = offsets or (0.0,) * classes
        self.register_buffer("offsets", torch.tensor([positive, *others]))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        numbered = self.head(features)  # the loop numbers the positive class last
        shown = torch.cat([numbered[:, -1:], numbered[:, :-1]], dim=1)
        logits = self.slope * shown + self.offsets
        return logits, logits.softmax(1)


class _Whole(nn.Module):
    """`MiniLMEfficientNet` and a calibrated head.

    Rows are assembled by products with zero-one matrices instead of `backbones.towers.assemble`'s index
    operations: the same sums, which every runtime can compute, for no texts or images too.
    """

    def __init__(self, towers: nn.Module, scored: _Calibrated) -> None:
        super().__init__()
        self.towers: Any = towers
        self.scored = scored

    def forward(  # noqa: PLR0917 -- the graph's inputs
        self, ids: Tensor, mask: Tensor, text_rows: Tensor, pixels: Tensor, image_rows: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        posts = torch.arange(size.item()).unsqueeze(1)
        of_text = (posts == text_rows).to(torch.float32)  # [B, N]
        of_image = (posts == image_rows).to(torch.float32)  # [B, M]
        text = of_text @ self.towers.embed_text(ids, mask)
        image = F.normalize(of_image @ self.towers.embed_image(pixels), dim=1)
        flags = [one.sum(1, keepdim=True).clamp(max=1) for one in (of_text, of_image)]
        scores: tuple[Tensor, Tensor] = self.scored(torch.cat([text, image, *flags], dim=1))
        return scores


def _head_graph(model: RunPredictor) -> _Graph:
    width = model.backbone.layout.width
    module = _Calibrated(model.head.cpu(), model.calibration, len(model.classes))
    posts = torch.export.Dim("posts")
    return _Graph(module, ("features",), (torch.zeros(3, width),), ({0: posts},))


def _whole_graph(model: RunPredictor) -> _Graph:
    backbone = _minilm_efficientnet(model)
    towers, side = backbone.module.cpu(), backbone.reading()["crop"]
    towers.placement = Placement(torch.device("cpu"), torch.float32)
    _merge_adapters(towers)
    module = _Whole(towers, _Calibrated(model.head.cpu(), model.calibration, len(model.classes)))
    texts, images = (torch.export.Dim(name) for name in ("texts", "images"))
    tokens = torch.export.Dim("tokens", max=MAX_TOKENS)
    # no size of 0 or 1, which the exporter would take for a constant
    example = (
        torch.full((3, 7), 100), torch.ones(3, 7, dtype=torch.int64), torch.tensor([0, 1, 2]),
        torch.zeros(2, 3, side, side), torch.tensor([0, 0]), torch.tensor(4),
    )  # fmt: skip
    shapes: tuple[dict[int, Any], ...] = (
        {0: texts, 1: tokens}, {0: texts, 1: tokens}, {0: texts}, {0: images}, {0: images}, {},
    )  # fmt: skip
    return _Graph(module, _INPUTS, example, shapes)


def _merge_adapters(module: nn.Module) -> None:
    """Fold LoRA adapters into the layers that they stand beside, and put those layers back in their place."""
    adapted = [(name, part) for name, part in module.named_modules() if hasattr(part, "lora_A")]
    for name, part in adapted:
        layer: Any = part
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, layer.get_base_layer())


def _write(graph: _Graph, metadata: dict[str, Any], file: Path) -> None:
    import onnx

    graph.module.eval()
    with warnings.catch_warnings(), redirect_stdout(StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own insides
        program = torch.onnx.export(
            graph.module, graph.example, input_names=list(graph.names), output_names=list(OUTPUTS),
            dynamic_shapes=graph.shapes, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None, "the dynamo exporter gives a program"
    proto = program.model_proto
    proto.metadata_props.append(
        onnx.StringStringEntryProto(key=METADATA_KEY, value=json.dumps(metadata, ensure_ascii=False))
    )
    atomic.write_bytes(file, proto.SerializeToString())


def _metadata(model: RunPredictor, *, head_only: bool) -> dict[str, Any]:
    layout = model.backbone.layout
    common = {
        "format": FORMAT,
        "name": model.name,
        "classes": list(model.classes),
        "positive": model.positive,
        # what is added to each class's log-probability before the likeliest is predicted; null: nothing
        "cut": model.cut,
        "fingerprint": model.fingerprint,
        "backbone": {"name": model.backbone.name, "fingerprint": model.pretrained},
        # column ranges of a feature row, ends excluded
        "layout": {
            "text": (layout.text.start, layout.text.stop),
            "image": (layout.image.start, layout.image.stop),
            "has_text": (layout.has_text, layout.has_text + 1),
            "has_image": (layout.has_image, layout.has_image + 1),
        },
    }
    return common if head_only else common | {"reading": _minilm_efficientnet(model).reading()}


def _minilm_efficientnet(model: RunPredictor) -> MiniLMEfficientNet:
    if not isinstance(model.backbone, MiniLMEfficientNet):
        raise ServingError(
            f"{model.folder.path} uses the backbone {model.backbone.name!r}, which is not exported; expected"
            " 'minilm_efficientnet'. --head-only writes the head of a run that trained the head alone"
        )
    return model.backbone

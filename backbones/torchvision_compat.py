"""Import torchvision beside a torch for which its compiled operators were not built.

The ordinary torchvision wheel beside a CPU-only torch cannot load its compiled library. It tolerates that,
except that it then registers fake kernels for two operators that nobody has declared, and the import fails.
Declaring the two mends it: resizing and cropping, all that we use, are plain torch and Pillow. open_clip,
timm and the models of transformers import torchvision, so this runs before any of them.
"""

from __future__ import annotations

import importlib
import sys

import torch

from backbones.errors import TorchvisionError

_MISSING = "torchvision::nms"
# A Library takes its declarations with it when it is collected, so it is kept here.
_declared: list[torch.library.Library] = []


def ensure_torchvision() -> None:
    """Import torchvision, declaring its two missing operators when it fails for want of them.

    TorchvisionError: it is absent, or fails for another reason.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _MISSING not in str(error):
            raise TorchvisionError(_advice(error)) from error
        _retry_with_operators()
    except ImportError as error:
        raise TorchvisionError(_advice(error)) from error


def _retry_with_operators() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _declared.append(library)
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        raise TorchvisionError(_advice(error)) from error


def _advice(error: Exception) -> str:
    return (
        f"torchvision does not import beside torch {torch.__version__} ({error}); expected the release made "
        "for this torch. Reinstall the two together."
    )

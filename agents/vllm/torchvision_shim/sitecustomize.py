"""Let torchvision import beside a CPU build of torch, in every process of a server.

The ordinary torchvision wheel cannot load its compiled library there. It tolerates that, except that it then
registers fake kernels for an operator that nobody has declared, and the import fails. Declaring the operators
mends it: resizing and cropping, all that a server uses, are plain torch. Python runs a module of this name at
its start when the folder is on PYTHONPATH, so the server's children are mended like itself. Where the library
does load, nothing is declared.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

# imported by torchvision right after it has tried to load its library, and the first that wants the operators
_WANTS_OPERATORS = "torchvision._meta_registrations"
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# a torch.library.Library takes its declarations with it when it is collected, so it is kept here
_declared: list[Any] = []


class _DeclareOperators(importlib.abc.MetaPathFinder):
    """Finds nothing itself: it only uses the moment."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == _WANTS_OPERATORS:
            sys.meta_path.remove(self)
            _declare()
        return None


def _declare() -> None:
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(name + _SIGNATURE)  # type: ignore[no-untyped-call]
    _declared.append(library)


def _run_the_hidden_one() -> None:
    """Run the environment's own sitecustomize, which this file hides, if it has one."""
    here = Path(__file__).resolve().parent
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    spec = importlib.machinery.PathFinder.find_spec(__name__, elsewhere)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, _DeclareOperators())
if __name__ == "sitecustomize":
    _run_the_hidden_one()

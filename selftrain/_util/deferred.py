"""Modules that are imported when something of them is first asked for.

A command's options are known without torch, numpy or pydantic; what the command does is not. Help, completion
and a typing error are answered at once because the modules that do the work stand behind one of these.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _Deferred:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:  # noqa: ANN401 -- whatever the module holds
        return getattr(import_module(self._name), attribute)


def deferred(*names: str) -> tuple[Any, ...]:
    """Return what stands for these modules until they are used.

    Type checkers are told by an ordinary import under TYPE_CHECKING, of which this is the `else`.
    """
    return tuple(map(_Deferred, names))

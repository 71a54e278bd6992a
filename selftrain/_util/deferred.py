"""Modules that are loaded when something of them is first asked for.

A command's options are known without torch, numpy or pydantic; what the command does is not. Help, completion
and a typing error are answered at once because the modules that do the work are imported so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

_OURS = ("selftrain", "agents", "backbones", "losses")


class _LazyFinder:
    """Finds our modules as Python does, and puts off their loading."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] not in _OURS:
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is not None and found.loader is not None:
            found.loader = LazyLoader(found.loader)
        return found


@contextmanager
def deferred() -> Iterator[None]:
    """Import our modules lazily inside: ``with deferred(): from selftrain.data import manifest``."""
    sys.meta_path.insert(0, _LazyFinder)
    try:
        yield
    finally:
        sys.meta_path.remove(_LazyFinder)

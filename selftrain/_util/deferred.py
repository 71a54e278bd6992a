"""Modules that are imported when something of them is first asked for.

A command's options are known without torch, numpy or pydantic; what the command does is not. Help, completion
and a typing error are answered at once because the modules that do the work are imported like this::

    with deferred():
        from selftrain.data import manifest, task
"""

from __future__ import annotations

import builtins
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


class DeferredModule:
    """Stands for a module until something of it is used.

    `importlib.util.LazyLoader` would put what stands for it into `sys.modules`, where whoever walks through
    all modules (torch does, while it is imported) loads it at a bad moment.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever the module holds
        if self._path not in sys.modules:
            with _whole():
                import_module(self._path)
        return getattr(import_module(self._path), name)


@contextmanager
def _whole() -> Iterator[None]:
    """Hold Ctrl-C back until the block has ended.

    Within an import of torch or numpy C code takes the exception for a failure of its own: what is half
    imported then fails in other words, or the process aborts.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    held = list[int]()
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)


class _Package:
    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> DeferredModule:
        return DeferredModule(f"{self._path}.{name}")


@contextmanager
def deferred() -> Iterator[None]:
    """Put off every ``from package import module`` inside; type checkers see an ordinary import."""
    imported = builtins.__import__
    builtins.__import__ = lambda name, *_: _Package(name)  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.__import__ = imported

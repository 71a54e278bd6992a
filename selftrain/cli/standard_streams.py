"""Standard streams that are there, and that say so where they refuse, before a command begins.

A shell closes them with ``>&-``, a service may start without them, and a disk that standard output is sent to
may be full.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class OutputError(Exception):
    """Standard output refuses. No OSError: rich, Typer and whoever writes files take that for theirs."""

    def __init__(self, error: OSError) -> None:
        super().__init__(
            f"standard output could not be written: {error.strerror or error}. Send it where there is room,"
            " and start the same command again; what was finished is kept"
        )
        self.nobody_reads = error.errno == errno.EPIPE


class _Output(io.TextIOWrapper):
    """Text of which every refusal is an `OutputError`.

    The bytes below are Python's own: were they written by a method of ours, a signal between the writing and
    its return would have them written twice.
    """

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error) from error


@contextmanager
def whole() -> Iterator[None]:
    """Put streams that go nowhere in the place of closed ones, and have standard output refuse in words."""
    _open_closed()
    own = sys.stdout
    # another one is a test's, or that of a program that calls `main`
    if own is not sys.__stdout__ or not isinstance(own, io.TextIOWrapper):
        yield
        return
    own.flush()
    sys.stdout = _Output(
        io.BufferedWriter(io.FileIO(own.fileno(), "wb", closefd=False)), own.encoding, own.errors,
        line_buffering=own.line_buffering or own.write_through,
    )  # fmt: skip
    try:
        yield
    finally:
        sys.stdout = own


def drop_output() -> None:
    """Point standard output nowhere, since it refuses: what is left over would fail once more at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    sys.stdout.flush()


def _open_closed() -> None:
    """Open what is closed. By its number too: the next file would take it, and be written by every print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # the lowest number that is free; children take it over as they do any other standard stream
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 -- to the end of the process
            setattr(sys, f"__{name}__", getattr(sys, name))

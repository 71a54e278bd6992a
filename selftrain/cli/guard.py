"""What happens around a command: exit statuses, errors that have a message, interruptions."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from selftrain._util.object_urls import name_urls
from selftrain._util.printable import printable_lines
from selftrain.cli.standard_streams import OutputError, drop_output

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

FAILED, INTERRUPTED, BROKEN_PIPE = 2, 130, 141

_TREES = (
    ("selftrain.errors", "SelftrainError"),
    ("agents.errors", "AgentError"),
    ("backbones.errors", "BackboneError"),
    ("losses.base", "LossError"),
)

_MORE_MEMORY = (
    "there is no memory left for this process: what was finished is kept, and the same command goes on from"
    " there, with smaller batches or where more memory is free"
)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Have Ctrl-C end a command also where Python drops it.

    What is raised while an object is collected, in a finalizer or the callback of a weak reference, goes to
    `sys.unraisablehook` and no further. A moment later the main thread is somewhere else.
    """
    told = sys.unraisablehook

    def again(what: UnraisableHookArgs) -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            told(what)
            return
        # to the main thread itself, which may be waiting in the system by then
        later = threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        later.daemon = True
        try:
            later.start()
        except KeyboardInterrupt:  # on a busy machine it comes before this hook has ended, and is dropped too
            again(what)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = told


@_interruptible()
def guarded(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit status; none counts as 0.

    2 after an error that has a message. Ctrl-C and an output that refuses are raised on: they may come before
    a command too, and are said in one place.
    """
    try:
        status = command()
    except OutputError:
        raise
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        # messages quote what files hold, and what files hold is data
        print(f"error: {printable_lines(name_urls(message))}", file=sys.stderr)
        return FAILED
    return status or 0


def interrupted() -> int:
    """Say what Ctrl-C leaves, and return the exit status."""
    print(
        "\ninterrupted: what was finished is kept, and the same command goes on from there", file=sys.stderr
    )
    return INTERRUPTED


def refused(error: OutputError) -> int:
    """Say why standard output could not be written, and return the exit status; a reader may go away."""
    drop_output()
    if error.nobody_reads:
        return BROKEN_PIPE
    print(f"error: {error}", file=sys.stderr)
    return FAILED


def prepare_process() -> None:
    """Keep the libraries' chatter out of the output, survive a terminal without a character, share cores."""
    # threads of a model that wait for each other sleep instead of spinning on cores that others need: beside
    # other work two that spun on two cores took ten times as long as one. OpenMP reads it as torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:  # whoever asks for warnings with -W or PYTHONWARNINGS gets them
        warnings.filterwarnings("ignore", module=r"(torch|torchvision|timm|transformers|open_clip|PIL)\b")
    if logging.lastResort is not None:  # what warnings quote from files is data too
        logging.lastResort.setFormatter(_Printable())
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(name_urls(super().format(record)))


def _message(error: Exception) -> str | None:
    """Return what the user can act on, or None: nobody expected this error.

    An error of a tree can only be here if the tree's module is loaded: nothing is imported to find out.
    """
    bases = [getattr(sys.modules[module], name) for module, name in _TREES if module in sys.modules]
    if isinstance(error, tuple(bases)):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:  # of a file that the user named
        return f"{error.filename}: {error.strerror or error}"
    # Python and numpy have a class for it; torch says so in words alone
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return _MORE_MEMORY
    return None

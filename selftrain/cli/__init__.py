"""The command line: one thin module a group of commands; what they do lies elsewhere.

Nothing heavy is imported until a command has been chosen, so that ``selftrain --help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

FAILED, INTERRUPTED, BROKEN_PIPE = 2, 130, 141

_TREES = (
    ("selftrain.errors", "SelftrainError"),
    ("agents.errors", "AgentError"),
    ("backbones.errors", "BackboneError"),
    ("losses.errors", "LossError"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; None: those of this process.

    Returns:
        The exit status: 0, 1 where a check found faults, 2 after an error that has a message, 130 after
        Ctrl-C, 141 when whoever read the output went away.
    """
    args = build_parser().parse_args(argv)
    _quiet()
    try:
        status: int = args.handler(args)
        # here rather than at exit, where a broken pipe could not be caught any more
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(
            "\ninterrupted: what was finished is kept, and the same command goes on from there",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:
        _close_stdout()
        return BROKEN_PIPE
    except Exception as error:
        if not _expected(error):
            raise
        _print_error(error)
        return FAILED
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `handler`, from arguments to exit status."""
    from selftrain import __version__
    from selftrain.cli import (
        act,
        agentps,
        agents,
        annotate,
        compare,
        data,
        export,
        inspect,
        predict,
        prompts,
        review,
        reviews,
        run,
        serve,
    )
    from selftrain.cli import filter as filters  # not over the built-in function

    parser = argparse.ArgumentParser(
        prog="selftrain",
        description="From 50-100 labelled posts and a pool to a better classifier and a grown dataset.",
        epilog="First time here? `selftrain quickstart` draws its own data and needs no download.",
    )
    parser.add_argument("--version", action="version", version=f"selftrain {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (
        run,
        inspect,
        compare,
        prompts,
        predict,
        agentps,
        serve,
        filters,
        export,
        data,
        annotate,
        act,
        review,
        reviews,
        agents,
    ):
        group.add_parsers(subparsers)
    return parser


def _expected(error: Exception) -> bool:
    """Whether the message alone tells the user what to do.

    An error of a tree can only be here if the tree's module is loaded: nothing is imported to find out.
    """
    bases = [getattr(sys.modules[module], name) for module, name in _TREES if module in sys.modules]
    # beside the trees, what the operating system refuses about a file that the user named
    return isinstance(error, tuple(bases)) or (isinstance(error, OSError) and error.filename is not None)


def _print_error(error: Exception) -> None:
    from selftrain._util.printable import printable

    message = str(error)
    if type(error).__module__ == "builtins" and isinstance(error, OSError):
        message = f"{error.filename}: {error.strerror}"
    # messages quote what files hold, and what files hold is data
    print("error: " + "\n".join(map(printable, message.split("\n"))), file=sys.stderr)


def _quiet() -> None:
    """Keep the libraries' chatter out of the output, and survive a terminal that lacks a character."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:  # whoever asks for warnings with -W or PYTHONWARNINGS gets them
        import warnings

        warnings.filterwarnings("ignore", module=r"(torch|torchvision|timm|transformers|open_clip)\b")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _close_stdout() -> None:
    """Nobody reads: point stdout nowhere, or Python complains when it flushes it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())

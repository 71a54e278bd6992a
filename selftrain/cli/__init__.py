"""The command line: a file for every noun; what the commands do lies elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from selftrain import __version__
from selftrain._util.printable import printable_lines
from selftrain.cli.commands import CommandLine
from selftrain.cli.guard import FAILED, INTERRUPTED, interrupted, prepare_process, refused
from selftrain.cli.standard_streams import OutputError, whole

app = typer.Typer(
    cls=CommandLine,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From 50-100 labelled posts and a pool to a better classifier and a grown dataset.",
    epilog="First time here? `selftrain quickstart` draws its own data and needs no download.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; None: those of this process.

    Returns:
        The exit status: 0, 1 where a check found faults, 2 after an error that has a message or arguments
        that make no command, 130 after Ctrl-C, 141 when whoever read the output went away.
    """
    with whole():
        prepare_process()
        try:
            status = _run(argv)
            # here rather than at exit, where a refusal could not be caught any more
            sys.stdout.flush()
        except OutputError as error:
            return refused(error)
    return status


def _run(argv: Sequence[str] | None) -> int:
    """Run one command; an output that refuses is raised on."""
    try:
        # not standalone: that would draw boxes around errors, and end the process
        status: int = get_command(app).main(argv, prog_name="selftrain", standalone_mode=False)
    except typer.TyperException as error:
        _print_usage(error)
        return FAILED
    except KeyboardInterrupt:  # before Typer begins; later it makes a status of it, without a word
        status = INTERRUPTED
    return interrupted() if status == INTERRUPTED else status


def _print_usage(error: typer.TyperException) -> None:
    """Say what is wrong with the arguments, on plain lines that a pipe may hold."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    if not message:  # no arguments at all: the help has been printed
        return
    print(f"error: {printable_lines(message)}", file=sys.stderr)
    if context is not None:
        print(f"{context.get_usage()}\nhelp: {context.command_path} --help", file=sys.stderr)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"selftrain {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""

"""The commands of ``selftrain``, by name: which module holds each, and its line in the help.

A noun's module is loaded when the noun was chosen. Help, completion and the hint after a typing error need
this table alone, so they answer at once.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from selftrain.cli.guard import guarded

if TYPE_CHECKING:
    from typer._click import Command, Context


_EMPTY = re.compile("--[a-z-]+=")  # an option without its value


class Listed(NamedTuple):
    """A word that may follow ``selftrain``."""

    name: str  # the word
    module: str  # file of this folder that holds it
    panel: str  # heading that it stands under in the help
    help: str  # one line
    commands: tuple[str, ...] = ()  # what may follow a noun; empty for a command


RUNS, MODELS, DATA = "Runs", "Models", "Data, agents and people"

ENTRIES = (
    Listed("quickstart", "runs", RUNS, "Make a first run, on posts that it draws itself."),
    Listed("run", "runs", RUNS, "Run a recipe; a run that was interrupted goes on."),
    Listed("status", "results", RUNS, "Say where a run stands, and what would happen next."),
    Listed("show", "results", RUNS, "Show the rounds of a run, or everything said about one post."),
    Listed("report", "results", RUNS, "Render a run's report.html anew."),
    Listed("compare", "results", RUNS, "Hold runs side by side: recipes, curves, final metrics."),
    Listed("predict", "models", MODELS, "Label other posts with a trained model."),
    Listed("serve", "models", MODELS, "Answer over HTTP with a trained model."),
    Listed(
        "filter", "models", MODELS, "Keep the posts of a stream that a model finds, by precision or recall."
    ),
    Listed("export", "models", MODELS, "Write a run's best classifier as an ONNX file."),
    Listed(
        "agentps", "agentps", MODELS, "Fine-tune a multimodal language model on the grown data (AgentPS).",
        ("train", "from-run", "predict", "evaluate"),
    ),
    Listed(
        "data", "data", DATA, "Check manifests, import published data sets, begin with a task.",
        ("check", "import", "tasks"),
    ),
    Listed("annotate", "annotate", DATA, "Ask a model a task's questions about every post (process labels)."),
    Listed(
        "agents", "agents", DATA, "Start or check the vLLM servers of the agents, show their prompts.",
        ("serve", "check", "prompts"),
    ),
    Listed(
        "review", "review", DATA, "Have people review posts: on a page, or in a tool of yours.",
        ("serve", "export", "import", "audit"),
    ),
    Listed(
        "act", "act", DATA, "Label a pool by models, and have people put right what is likely wrong.",
        ("select-models", "annotate", "export", "train"),
    ),
)  # fmt: skip


class CommandLine(TyperGroup):
    """All commands; the module of one is loaded when it was chosen."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the words that may follow ``selftrain``."""
        return [entry.name for entry in ENTRIES]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Return what help and completion need of a command: its name and its line."""
        found = _entry(cmd_name)
        return found and TyperCommand(found.name, help=found.help, rich_help_panel=found.panel)

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Refuse an empty argument, which as a path would be the current folder; take the rest as usual."""
        for before, one in pairwise([str(ctx.info_name), *args]):
            if (not one or _EMPTY.fullmatch(one)) and not ctx.resilient_parsing:
                found = one.rstrip("=") or (
                    before if before.startswith("-") else f"an argument after {before}"
                )
                ctx.fail(f"{found} is empty: expected a value. Of a shell's variable: is it set?")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """Load the command that the arguments begin with."""
        found = _entry(args[0])
        if found is not None:
            return found.name, load(found), args[1:]
        if not ctx.resilient_parsing:  # completion asks what there is, and gets no error
            inner = [f"{entry.name} {command}" for entry in ENTRIES for command in entry.commands]
            _refuse(ctx, args[0], self.list_commands(ctx), inner)
        return None, None, args[1:]

    def invoke(self, ctx: Context) -> int:
        """Run the chosen command and return its exit status; what can go wrong is printed here."""
        return guarded(lambda: super(CommandLine, self).invoke(ctx))


class Noun(TyperGroup):
    """Commands on one thing."""

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """Find the command that the arguments begin with."""
        found = self.get_command(ctx, args[0])
        if found is None and not ctx.resilient_parsing:
            _refuse(ctx, args[0], self.list_commands(ctx), before=f"{ctx.info_name} ")
        return args[0] if found else None, found, args[1:]


def noun(help: str) -> typer.Typer:  # noqa: A002 - typer's own name for it
    """Return an empty group for the commands of one module."""
    return typer.Typer(cls=Noun, help=help, no_args_is_help=True, add_completion=False)


def load(entry: Listed) -> Command:
    """Import the module of an entry and return its command, or all its commands where it is a noun."""
    group = get_group(importlib.import_module(f"selftrain.cli.{entry.module}").app)
    return group if entry.commands else group.commands[entry.name]


def _entry(name: str) -> Listed | None:
    return next((entry for entry in ENTRIES if entry.name == name), None)


def _refuse(
    ctx: Context, word: str, names: Sequence[str], inner: Sequence[str] = (), before: str = ""
) -> NoReturn:
    """Say what is there instead of `word`: the nearest command, deeper ones among them, or all of them."""
    near = difflib.get_close_matches(before + word, [*(before + name for name in names), *inner], n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(names)}"
    ctx.fail(f"no command {before + word!r}: {hint}")

"""Arguments and options of the commands: how they are declared, and those that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import typer

from selftrain._util.choices import Rule
from selftrain._util.deferred import deferred
from selftrain._util.object_urls import local_path, refuse
from selftrain.errors import ManifestError, RecipeError
from selftrain.store import atomic

with deferred():
    from selftrain.data import manifest as manifests
    from selftrain.engine import on_ray, scraped

if TYPE_CHECKING:
    from selftrain.config import EngineSection

KEY_VARIABLE = "SELFTRAIN_API_KEY"
"""Environment variable of the key for the agents' servers; a key never stands on a command line."""


def _usable(given: Any) -> Any:  # noqa: ANN401 -- whatever an option holds
    """Refuse URLs among paths, of which pathlib would make a folder ``s3:``, and what is no finite number."""
    for one in given if isinstance(given, list | tuple) else (given,):
        if isinstance(one, Path):
            refuse(one)
        elif isinstance(one, float) and not math.isfinite(one):
            raise typer.BadParameter(f"{one:g}; expected a finite number")
    return given


def _file(named: str | None) -> str | None:
    """Return the file that a text names, "-" as it is; see `_to_write`."""
    return named if named in (None, "-") else str(_to_write(Path(named)))


def _file_or_folder(ctx: typer.Context, named: str) -> str | None:
    """Return the file as `_file`, or the folder that is there where the output is divided into files."""
    if ctx.params.get("rows_per_file") is not None and Path(named).is_dir():
        return str(Path(named).resolve())
    return _file(named)


def _to_write(named: Path | None) -> Path | None:
    """Return the file to write, where a link points to; refuse URLs, and what is there and no regular file.

    It is told here, before a command does anything.
    """
    if named is None:
        return None
    refuse(named)
    return atomic.followed(named)


def _table(named: str) -> Path:
    """Return where a table is read: a path, or that of the copy of what a URL names."""
    try:
        return local_path(named)
    except ManifestError as error:
        raise typer.BadParameter(str(error)) from error


def argument(metavar: str, text: str, **more: Any) -> Any:  # noqa: ANN401 -- as typer's own
    """Declare an argument; a path is one on this machine unless it has a parser."""
    return typer.Argument(metavar=metavar, help=text, **({"callback": _usable} | more))


def option(text: str, *names: str, metavar: str | None = None, panel: str | None = None, **more: Any) -> Any:  # noqa: ANN401
    """Declare an option.

    `names` has "--name" where that is not the parameter's; always of a switch, which has no opposite. `panel`
    is the heading that it stands under. A path is one on this machine unless it has a parser.
    """
    more = {"callback": _usable} | more
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, **more)


def written(text: str, *names: str, **more: Any) -> Any:  # noqa: ANN401
    """Declare an option that names a file to write, a path."""
    return option(text, *names, metavar="FILE", callback=_to_write, **more)


def several(text: str, name: str, *, metavar: str, **more: Any) -> Any:  # noqa: ANN401
    """Declare an option that may be given several times, or not at all: an empty list."""
    return option(text, name, metavar=metavar, default_factory=list, show_default=False, **more)


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command as typer takes it, which knows no groups of options.

    A parameter that is a NamedTuple of options becomes its fields; its default, if it has one, brings theirs.
    """
    hints, groups, taken = get_type_hints(command, include_extras=True), {}, list[Parameter]()
    for one in signature(command).parameters.values():
        kind = hints[one.name]
        if not hasattr(kind, "_field_defaults"):
            taken.append(one.replace(annotation=kind))
            continue
        groups[one.name] = kind
        defaults = kind._field_defaults if one.default is one.empty else one.default._asdict()
        for name, hint in get_type_hints(kind, include_extras=True).items():
            default = defaults.get(name, one.empty)
            taken.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hint))

    @wraps(command)
    def gathered(**given: Any) -> Any:  # noqa: ANN401 -- whatever the command takes and returns
        for name, kind in groups.items():
            given[name] = kind(**{field: given.pop(field) for field in kind._fields})
        return command(**given)

    gathered.__signature__ = Signature(taken)  # type: ignore[attr-defined]
    return gathered


# the heading of a panel is markup to rich
RAY = r"On many machines (pip install 'selftrain\[ray]'), with the same result"
DRAWING, COST, LIMITS = "How posts are drawn for review", "Cost", "Limits on what comes in"
ASKING = "What models are asked, and how"

Recipe = Annotated[Path, argument("RECIPE", "A TOML file.")]
RunPath = Annotated[Path, argument("RUN", "A run folder.")]
Model = Annotated[Path, argument("MODEL", "A run folder, an AgentPS model's, or an .onnx file.")]
TABLE = {"parser": _table}
"""Of what `argument` and `option` take: a table to read, which may be a URL."""
FILE = {"callback": _file}
"""Of what they take: a text that names a file to write, or "-"."""
Manifest = Annotated[Path, argument("MANIFEST", "JSON lines, CSV or Parquet; a path, or s3://...", **TABLE)]
OutFile = Annotated[
    str,
    option(
        "JSON lines, or CSV where it ends in .csv; - for standard output. With --rows-per-file a folder.",
        metavar="FILE",
        callback=_file_or_folder,
    ),
]
RowsPerFile = Annotated[
    int | None,
    # eager: what --out may be depends on it
    option(
        "Divide the output: --out becomes a folder of part-00000.jsonl, part-00001.jsonl and so on, N posts"
        " each. A file that is there is whole, while others are still written.",
        min=1, metavar="N", is_eager=True,
    ),
]  # fmt: skip
Columns = Annotated[
    list[str],
    several(
        "The manifest's column that holds a field, where it is called otherwise: label=class.",
        "--column", metavar="FIELD=NAME",
    ),
]  # fmt: skip
TaskFile = Annotated[Path, option("A TOML file: classes, policy, questions.", metavar="FILE")]
AsJson = Annotated[bool, option("Print JSON instead of text.", "--json")]
Overrides = Annotated[
    list[str],
    several(
        "Change one value of the recipe; may be given several times.", "--set", metavar="SECTION.KEY=VALUE"
    ),
]
Prompts = Annotated[
    Path | None, option("Prompt files that replace the built-in ones.", metavar="DIR", panel=ASKING)
]
Host = Annotated[str, option("Address to listen on.")]
Seed = Annotated[int, option("Of every draw.", metavar="N")]
TokenCap = Annotated[
    int | None, option("Most tokens that this may cost, in all starts.", metavar="N", min=1, panel=COST)
]
Budget = Annotated[int, option("Posts that people review.", metavar="B", min=1)]


class Reading(NamedTuple):
    """How a manifest is read."""

    columns: Columns
    max_bad_rows: Annotated[int | None, option("Most rows that may be set aside.", metavar="N", min=0)] = None
    max_bad_share: Annotated[
        float | None, option("Largest share of rows that may be set aside.", metavar="SHARE", min=0, max=1)
    ] = None

    @property
    def named(self) -> dict[str, str]:
        """Field -> the column that holds it."""
        return read_columns(self.columns)

    def tolerance(self, usual: manifests.Tolerance | None = None) -> manifests.Tolerance:
        """Return how many rows may be bad; what no option says is as usual."""
        return (usual or manifests.Tolerance()).changed(self.max_bad_rows, self.max_bad_share)


class Workers(NamedTuple):
    """Where a model is at work."""

    ray: Annotated[
        str | None,
        option(
            "Have the workers of a Ray cluster do it: its address; auto: the one that this machine belongs"
            " to; local: all cores of this machine.",
            metavar="ADDRESS", panel=RAY,
        ),
    ] = None  # fmt: skip
    ray_workers: Annotated[
        int | None,
        option("Workers at once; by default as many as there is room for.", metavar="N", min=1, panel=RAY),
    ] = None
    ray_cpus: Annotated[
        int | None, option("Cores of a worker; by default one.", metavar="N", min=1, panel=RAY)
    ] = None
    ray_gpus: Annotated[
        float | None,
        option("GPUs of a worker, by default none; .25 where four share one.", metavar="N", min=0, panel=RAY),
    ] = None
    metrics: Annotated[
        str | None,
        option(
            "Serve what each stage has done, has left and does a second to Prometheus, at /metrics.",
            metavar="[HOST:]PORT",
        ),
    ] = None

    def engine(self, usual: EngineSection | None = None) -> on_ray.OnRay | None:
        """Return the workers that the options ask for, None: this process does it; and serve its figures.

        What no option says of them is as `usual`.
        """
        if self.metrics is not None:
            typer.echo(f"figures for Prometheus: {scraped.serve_figures(self.metrics)}", err=True)
        if self.ray is not None:
            said = {"workers": self.ray_workers, "cpus": self.ray_cpus, "gpus": self.ray_gpus}
            by_recipe = {} if usual is None else {key: getattr(usual, key) for key in said}
            return on_ray.OnRay(self.ray, **by_recipe | {k: v for k, v in said.items() if v is not None})
        if self._replace(metrics=None) != Workers():
            raise typer.BadParameter("workers are those of a Ray cluster: add --ray ADDRESS, auto or local")
        return None


class Drawing(NamedTuple):
    """How posts are drawn for review, but for how many."""

    rule: Annotated[Rule, option("How likely errors are drawn more often.", "--rule", panel=DRAWING)] = (
        "exponential"
    )
    floor: Annotated[
        float,
        option("Of the budget, drawn from all posts alike.", metavar="SHARE", min=0, max=1, panel=DRAWING),
    ] = 0.1
    double_annotation_rate: Annotated[
        float, option("Of the posts, reviewed by two people.", metavar="SHARE", min=0, max=1, panel=DRAWING)
    ] = 0.1


def refuse_idle_overrides(recipe: Path | None, overrides: Sequence[str]) -> None:
    """Refuse overrides of a recipe that is not given."""
    if overrides and recipe is None:
        raise RecipeError("--set changes a value of a recipe, and none is given: add --recipe")


def read_columns(given: Sequence[str]) -> dict[str, str]:
    """Return field -> column of what `--column` says."""
    return read_pairs(given, "--column", "FIELD=NAME, for instance label=class")


def read_pairs(given: Sequence[str], name: str, expected: str) -> dict[str, str]:
    """Return key -> value of what an option that is given as KEY=VALUE says, at most once for each key."""
    found: dict[str, str] = {}
    for one in given:
        key, _, value = one.partition("=")
        if not (key.strip() and value):
            raise typer.BadParameter(f"{name} {one}: expected {expected}")
        if found.setdefault(key.strip(), value) != value:
            raise typer.BadParameter(
                f"{name} {one}: {key.strip()} is {found[key.strip()]} in another {name}; expected it once"
            )
    return found

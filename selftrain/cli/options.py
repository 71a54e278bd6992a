"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

KEY_VARIABLE = "SELFTRAIN_API_KEY"
"""Environment variable of the key for the agents' servers; a key never stands on a command line."""

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A run folder, an AgentPS model's, or an .onnx file.")
]
Manifest = Annotated[Path, typer.Argument(metavar="MANIFEST", help="JSON lines, CSV or Parquet.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Columns = Annotated[
    list[str],
    typer.Option(
        "--column", metavar="FIELD=NAME", default_factory=list, show_default=False,
        help="The manifest's column that holds a field, where it is called otherwise: label=class.",
    ),
]  # fmt: skip
MaxBadRows = Annotated[
    int | None, typer.Option(min=0, metavar="N", show_default=False, help="Most rows that may be set aside.")
]
MaxBadShare = Annotated[
    float | None,
    typer.Option(min=0, max=1, metavar="SHARE", show_default=False, help="Largest share of the rows."),
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", default_factory=list, show_default=False,
        help="Change one value of the recipe; may be given several times.",
    ),
]  # fmt: skip


def read_columns(given: Sequence[str]) -> dict[str, str]:
    """Return field -> column of what `--column` says.

    Raises:
        BadParameter: One that is not FIELD=NAME.
    """
    pairs = [one.partition("=") for one in given]
    for field, equals, name in pairs:
        if not (field and equals and name):
            raise typer.BadParameter(
                f"--column {field}{equals}{name}: expected FIELD=NAME, for instance label=class"
            )
    return {field.strip(): name for field, _, name in pairs}

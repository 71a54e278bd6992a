"""Arguments and options that several commands share."""

from __future__ import annotations

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
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", default_factory=list, show_default=False,
        help="Change one value of the recipe; may be given several times.",
    ),
]  # fmt: skip

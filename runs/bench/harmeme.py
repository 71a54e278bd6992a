"""`python -m runs.bench harmeme`: memes about Covid-19, harmful or harmless (Pramanick et al. 2021)."""

from __future__ import annotations

import argparse
from typing import Any

from runs.bench.loop_study import LoopStudy, add_options, run_study

STUDY = LoopStudy(
    name="harmeme",
    source="harmeme",
    recipe="harmeme.toml",
    where="get the Harm-C images and annotations that github.com/di-dimitrov/mmf points to",
    sizes=(100,),
)


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the study's options."""
    add_options(subparsers.add_parser("harmeme", description=__doc__), STUDY)


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    return run_study(STUDY, args)

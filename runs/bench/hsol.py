"""`python -m runs.bench hsol`: tweets, offensive or not (Davidson et al. 2017), 4,163 of each."""

from __future__ import annotations

import argparse
from typing import Any

from runs.bench.loop_study import LoopStudy, add_options, run_study

STUDY = LoopStudy(
    name="hsol",
    source="hsol/labeled_data.csv",
    recipe="hsol.toml",
    where="get labeled_data.csv from github.com/t-davidson/hate-speech-and-offensive-language",
    sizes=(100, 50),
)


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the study's options."""
    add_options(subparsers.add_parser("hsol", description=__doc__), STUDY)


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    return run_study(STUDY, args)

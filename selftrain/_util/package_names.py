"""A check that `agents`, `losses` and `backbones` are ours.

The names are common: the distribution openai-agents, for one, ships a top-level package `agents`, and a
script may have an `agents.py` beside it. Whichever lies first on `sys.path` wins, and what follows is an
ImportError that names neither. This check names both. It imports nothing of what it checks and takes about
a millisecond.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from selftrain.errors import NameTakenError

PACKAGES = ("agents", "losses", "backbones")

MARKER = b"Part of the selftrain distribution."
"""Stands in the docstring of each package's ``__init__.py``."""

_ADVICE = (
    "Give selftrain a virtual environment of its own: make one with python3 -m venv FOLDER and install "
    "selftrain there, with FOLDER/bin/pip"
)


def check_names(packages: Iterable[str] = PACKAGES) -> None:
    """Make sure that the leaves are found beside selftrain, and that nobody overwrote them there.

    Raises:
        NameTakenError: Another package would be imported, or none; names the file found, the distribution
            that owns it, and the remedy.
    """
    home = Path(__file__).resolve().parents[2]
    for name in packages:
        expected = home / name / "__init__.py"
        found = _locate(name)
        if found is None:
            raise NameTakenError(
                f"selftrain's package {name!r} is missing: expected {expected}. The installation is "
                "incomplete; install it again with pip install --force-reinstall --no-deps selftrain"
            )
        if os.path.realpath(found) != os.path.realpath(expected):
            raise NameTakenError(_elsewhere(name, found, expected))
        if MARKER not in expected.read_bytes():
            raise NameTakenError(_overwritten(name, expected))


def _locate(name: str) -> str | None:
    """Return the file, or folder without ``__init__.py``, that ``import name`` would take, if any."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # already imported, and without a spec: a stand-in of some test or tool
        return getattr(sys.modules[name], "__file__", None) or f"<{name!r} in sys.modules, without a file>"
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    return spec.origin or (folders[0] if folders else f"<{name!r}, without a file>")


def _elsewhere(name: str, found: str, expected: Path) -> str:
    owners = _owners(name, found)
    message = f"import {name} would take {found}, which is not selftrain's (that one is {expected}). "
    if owners:
        return f"{message}It belongs to {' and '.join(owners)}, which uses the same name. {_ADVICE}"
    return (
        f"{message}No installed distribution owns it; it lies earlier on the path that Python searches. "
        f"Rename it, or run from another folder. If it belongs to an environment: {_ADVICE}"
    )


def _overwritten(name: str, file: Path) -> str:
    owners = _owners(name, str(file)) or ["something else"]
    return (
        f"{file} is not selftrain's any more: {' and '.join(owners)}, which uses the same name {name!r}, was "
        f"installed over it. {_ADVICE}"
    )


def _owners(name: str, found: str) -> list[str]:
    """List names and versions of the other distributions that list the file; slow, so for messages alone."""
    metadata = importlib.import_module("importlib.metadata")  # 40 ms that only a message needs
    owners: dict[str, None] = {}
    for distribution in metadata.distributions():
        title = distribution.metadata["Name"]
        if title == "selftrain":
            continue
        # the cheap comparison first: a path is resolved only where the top-level name fits
        files = [file for file in distribution.files or () if file.parts[0] in (name, f"{name}.py")]
        if any(os.path.realpath(str(file.locate())) == os.path.realpath(found) for file in files):
            owners[f"{title} {distribution.version}"] = None
    return list(owners)

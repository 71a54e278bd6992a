"""The lock files: all that pyproject.toml asks for, each with hashes, and what is installed here."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[3]
LOCKS = {"requirements.lock": (), "requirements-dev.lock": ("bench", "mlflow", "onnx", "dev")}
# their builds differ from place to place, and so do the hashes: constraints.txt pins them
APART = {"torch", "torchvision", "selftrain"}


def locked(name):
    """Package -> version and hashes of a lock file."""
    text = (CHECKOUT / name).read_text()
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        if match := re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==(\S+)(.*)", line):
            found[canonicalize_name(match[1])] = match[2], re.findall(r"--hash=sha256:[0-9a-f]{64}", match[3])
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_that_is_asked_for_is_locked_with_hashes(name):
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    asked = list(project["dependencies"])
    for extra in LOCKS[name]:
        asked += project["optional-dependencies"][extra]
    packages = locked(name)
    assert all(hashes for _, hashes in packages.values())
    for one in map(Requirement, asked):
        if canonicalize_name(one.name) not in APART:
            assert one.specifier.contains(packages[canonicalize_name(one.name)][0]), one


def test_both_files_lock_the_same_versions():
    few, all_ = (locked(name) for name in LOCKS)
    assert few.items() <= all_.items()


def test_what_is_installed_is_what_is_locked():
    other = {
        name: version(name)
        for name, (one, _) in locked("requirements-dev.lock").items()
        if version(name) != one
    }
    assert other == {}

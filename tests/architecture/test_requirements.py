"""Whatever is imported is asked for: nothing works only because an environment happens to have more."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from forking import BESIDE_TORCHVISION, THIRD_PARTY
from structure import CHECKOUT, PACKAGES

FORKED = (*THIRD_PARTY, *BESIDE_TORCHVISION)

BY_THEIR_OWNER = {"pydantic-core": "pydantic"}
"""Distributions that come with another one in just the version that it wants."""

BY_HAND = frozenset({"datasets", "profanity_check", "setfit", "vaderSentiment"})
"""Packages of a study, which names the command that installs them where they are missing."""


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def imported(folder):
    """Top-level names that a folder's files import, at whatever depth, and what tests are forked with."""
    listed = {name.partition(".")[0] for name in FORKED} if folder == "tests" else set()
    found = set()
    for file in (CHECKOUT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return found | listed


def foreign(folder):
    ours = {*PACKAGES, "runs", *sys.stdlib_module_names, *BY_HAND}
    ours |= {file.stem for file in (CHECKOUT / "tests").rglob("*.py")}
    return imported(folder) - ours


def unasked(folder, asked):
    brought = packages_distributions()
    found = set()
    for name in foreign(folder):
        distributions = {canonical(one) for one in brought.get(name, [])}
        distributions |= {BY_THEIR_OWNER[one] for one in distributions & set(BY_THEIR_OWNER)}
        if not distributions & asked:
            found.add(name)
    return found


def declared():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    chosen = [project["dependencies"], *(extras[name] for name in extras.keys() - {"bench", "dev"})]
    return {canonical(one) for listed in chosen for one in listed}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_declares_what_it_imports(package):
    assert unasked(package, declared()) == set()


@pytest.mark.parametrize("folder", ["tests", "runs"])
def test_tests_and_studies_import_what_is_locked_for_development(folder):
    lines = (CHECKOUT / "requirements-dev.lock").read_text(encoding="utf-8").splitlines()
    locked = {canonical(line) for line in lines if re.match(r"[\w.-]+(\[.*\])?==", line)}
    # builds of these differ from place to place: constraints.txt has their versions
    assert unasked(folder, locked | {"torch", "torchvision"}) == set()


def test_a_package_that_nobody_asked_for_is_seen():
    assert "prometheus_client" in foreign("tests")  # of what tests are forked with
    assert {"numpy", "aiohttp"} <= unasked("agents", set())

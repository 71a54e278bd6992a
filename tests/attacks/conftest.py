"""Each test here is an attack, of the kind that its mark names; `make cases` writes what came of them."""

from __future__ import annotations

from collections import Counter

import pytest
from page_tables import write_table

HEAD = ("held", "failed", "skipped")
OUTCOMES: Counter[tuple[str, str]] = Counter()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    kind = item.get_closest_marker("attack")
    if kind is not None and (report.when == "call" or not report.passed):
        OUTCOMES[kind.args[0], "held" if report.passed else report.outcome] += 1
    return report


def pytest_collection_modifyitems(items):
    here = [item for item in items if "attacks" in item.path.parts]
    unnamed = [item.nodeid for item in here if item.get_closest_marker("attack") is None]
    assert not unnamed, f"attacks without a kind: {unnamed}"


def pytest_sessionfinish():
    write_table("attacks", HEAD, OUTCOMES)

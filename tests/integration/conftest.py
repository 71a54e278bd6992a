"""What the integration tests share: one Chromium, and pages opened from a file in it."""

from __future__ import annotations

import os

import pytest
from browser_helpers import listening

from runs.bench.report import FLAGS, chromium
from selftrain.errors import SelftrainError


@pytest.fixture(scope="module")
def browser():
    """One Chromium for a module's tests; where it must be there, its absence is a failure."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="needs the development tools: pip install .[dev]"
    )
    try:
        path = chromium()
    except SelftrainError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{error} (`make test` does)")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser):
    """Opens a file in a context of its own; at the end nothing was said, thrown, asked or fetched."""
    with listening(browser) as pages:

        def open_(file, **options):
            return pages.open(file.as_uri(), **options)

        open_.noise, open_.fetched, open_.refused = pages.noise, pages.fetched, pages.refused
        yield open_
    assert {url.split(":", 1)[0] for url in pages.fetched} <= {"file", "data"}
    assert all(url.endswith(".html") for url in pages.fetched if url.startswith("file:"))
    assert pages.refused == []

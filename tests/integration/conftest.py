"""What the integration tests share: one Chromium."""

from __future__ import annotations

import os

import pytest

from selftrain.bench.report import FLAGS, chromium
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
        pytest.skip(f"{error} (tests/integration/install_chromium.sh does)")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()

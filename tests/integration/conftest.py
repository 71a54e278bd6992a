"""What the integration tests share: one Chromium, and pages opened from a file in it."""

from __future__ import annotations

import os

import pytest

from selftrain.bench.report import FLAGS, chromium
from selftrain.errors import SelftrainError

DESKTOP = {"width": 1280, "height": 900}


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


@pytest.fixture
def open_page(browser):
    """Opens a file in a context of its own; at the end nothing was said, thrown, asked or fetched."""
    contexts, noise, fetched, refused = [], [], [], []

    def open_(file, **options):
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("dialog", lambda dialog: (noise.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: fetched.append(request.url))
        page.on("requestfailed", lambda request: refused.append((request.url, request.failure)))
        page.goto(file.as_uri())
        return page

    open_.noise, open_.fetched, open_.refused = noise, fetched, refused
    yield open_
    for context in contexts:
        context.close()
    assert noise == []
    assert {url.split(":", 1)[0] for url in fetched} <= {"file", "data"}
    assert all(url.endswith(".html") for url in fetched if url.startswith("file:"))
    assert refused == []

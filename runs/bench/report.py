"""`python -m runs.bench report`: how large the report of a long run is, and how fast a browser opens it.

A run folder with random posts and made-up verdicts is written by the writers of real runs. Its page is then
opened from disk in a headless Chromium: time until the list of verdicts is drawn, time of the first search
(which reads every verdict) and of a sort, and the number of elements in the document.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runs.bench.study import Figure, Figures, numbers
from selftrain.errors import SelftrainError

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

# seconds of one change to a control, until its effect is drawn
_TIMED = """async ([id, value, event]) => {
  const control = document.getElementById(id);
  const before = performance.now();
  control.value = value;
  control.dispatchEvent(new Event(event));
  const done = document.getElementById("count");
  if (event === "input") {
    const said = done.textContent;
    while (done.textContent === said) await new Promise((next) => setTimeout(next));
  }
  await new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
  return (performance.now() - before) / 1000;
}"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument(
        "--n", type=numbers, default="1000,10000,50000", help="numbers of verdicts, by commas"
    )
    parser.add_argument("--chromium", help="the browser (default: the chromium on the path)")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure each size, and print the table.

    Raises:
        SelftrainError: No Chromium, or no Playwright to drive it.
    """
    browser = chromium(args.chromium)
    for size in args.n:
        if figures.has("report", "ours", size, 0):
            continue
        with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as place:
            values = measure(Path(place), size, browser)
        figures.add([Figure("report", "random", "ours", size, 0, *item) for item in values.items()])
    print("\n".join(figures.table()))


def chromium(given: str | None = None) -> str:
    """Path of the browser.

    Raises:
        SelftrainError: There is none.
    """
    found = shutil.which(given or "chromium") or (None if given else shutil.which("chromium-browser"))
    if found is None:
        raise SelftrainError(
            f"no browser {given or 'chromium'!r} on the path: install Debian's package chromium, or name one"
            " with --chromium"
        )
    return found


def measure(place: Path, verdicts: int, browser: str) -> dict[str, float]:
    """All figures of one size, by name; seconds and megabytes (1e6 bytes).

    Raises:
        SelftrainError: Playwright is not installed.
    """
    from runs.bench.synthetic_run import synthetic_run
    from selftrain.report.run_page import write_report

    folder = synthetic_run(place, verdicts)
    began = time.perf_counter()
    page = write_report(folder)
    values = {"write_seconds": time.perf_counter() - began, "page_mb": page.stat().st_size / 1e6}
    return values | open_page(page, browser)


def open_page(page: Path, browser: str) -> dict[str, float]:
    """What a browser takes to open a report, search and sort it."""
    with empty_tab(browser) as tab:
        values = {"open_seconds": seconds_to_open(tab, page, "#list li")}
        values["search_seconds"] = tab.evaluate(_TIMED, ["f-search", "turnip violin", "input"])
        values["search_again_seconds"] = tab.evaluate(_TIMED, ["f-search", "copper island", "input"])
        values["sort_seconds"] = tab.evaluate(_TIMED, ["f-sort", "low", "change"])
        values["elements"] = tab.evaluate("document.querySelectorAll('*').length")
    return values


@contextmanager
def empty_tab(browser: str) -> Iterator[Any]:
    """Lend a tab of a browser that is started for it.

    Raises:
        SelftrainError: Playwright is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise SelftrainError(
            "Playwright is not installed: pip install playwright (its own browsers are not needed)"
        ) from error
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        tab = opened.new_page()
        tab.goto("about:blank")
        yield tab
        opened.close()


def seconds_to_open(tab: Any, page: Path, drawn: str) -> float:  # noqa: ANN401 -- a page of Playwright
    """Open a file; return the seconds until it is loaded and an element that `drawn` selects is there."""
    began = time.perf_counter()
    tab.goto(page.as_uri())
    tab.wait_for_selector(drawn)
    return time.perf_counter() - began

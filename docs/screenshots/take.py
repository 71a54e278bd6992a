"""Take the screenshots of this folder anew: python docs/screenshots/take.py RUN, the quickstart's run."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from runs.bench.report import FLAGS, chromium

HERE = Path(__file__).parent
REVIEW = {"width": 1280, "height": 760}
DESKTOP, PHONE = {"width": 1280, "height": 1060}, {"width": 375, "height": 780}


def top(page: Page) -> None:
    """As it opens."""


def model(page: Page) -> None:
    """The best model's figures and curves."""
    page.locator("#model").evaluate("(one) => window.scrollTo(0, one.offsetTop - 20)")


def verdicts(page: Page) -> None:
    """The browser, at a verdict in which an agent changed its mind, its pictures shown."""
    page.locator("#f-changed").select_option("any")
    page.locator("#f-set").select_option("1")
    page.locator("#pictures").check()
    for _ in range(60):
        if page.locator("#detail .picture img").count() and page.locator("#detail .chip.note").count():
            break
        page.keyboard.press("j")
    page.locator("#verdicts").evaluate("(one) => window.scrollTo(0, one.offsetTop - 20)")


def reading(page: Page) -> None:
    """One verdict, where list and verdict stand below each other."""
    verdicts(page)
    page.locator(".reading").evaluate("(one) => window.scrollTo(0, one.offsetTop - 50)")


def reviewing(page: Page) -> None:
    """A review with a few answers, at a post with a picture."""
    page.locator("#post-number").wait_for()
    for key in "121" + 20 * "2":
        if page.locator("#album").is_visible() and page.locator("#previous .chip.good").count():
            break
        shown = page.locator("#post-id").inner_text()
        page.keyboard.press(key)
        page.wait_for_function("(id) => document.getElementById('post-id').textContent !== id", arg=shown)
    page.keyboard.press("b")
    page.locator("#image").evaluate("(one) => one.decode()")


@contextmanager
def review_of(run: Path) -> Iterator[str]:
    """The address of a review of a copy of the run."""
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copytree(run, Path(place) / run.name, ignore=shutil.ignore_patterns("*review*"))
        command = [sys.executable, "-m", "selftrain", "review", "serve", str(copy), "--no-browser"]
        with subprocess.Popen(
            [*command, "--budget", "40", "--reviewer", "Ann"], stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            yield next(line.split()[1] for line in server.stdout if line.startswith("open "))
            server.terminate()


SHOTS = (
    ("report-light", "light", DESKTOP, top), ("report-dark", "dark", DESKTOP, top),
    ("model-light", "light", DESKTOP, model), ("verdicts-light", "light", DESKTOP, verdicts),
    ("verdicts-dark", "dark", DESKTOP, verdicts), ("phone-light", "light", PHONE, top),
    ("phone-dark", "dark", PHONE, reading),
)  # fmt: skip


def main(run: Path) -> None:
    """One PNG of 256 colours a view."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        for name, scheme, viewport, prepare in SHOTS:
            scale = 2 if viewport is PHONE else 1
            page = browser.new_page(color_scheme=scheme, viewport=viewport, device_scale_factor=scale)
            page.goto((run / "report.html").resolve().as_uri())
            prepare(page)
            take(page, name)
        with review_of(run) as address:
            page = browser.new_page(color_scheme="light", viewport=REVIEW)
            page.goto(address)
            reviewing(page)
            take(page, "review-light")
        browser.close()


def take(page: Page, name: str) -> None:
    """Write what the page shows, and close it."""
    page.evaluate("document.activeElement.blur()")
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(HERE / f"{name}.png", optimize=True)
    page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

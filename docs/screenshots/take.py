"""Take the screenshots of this folder anew: python docs/screenshots/take.py RUN, the quickstart's run."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from selftrain.bench.report import FLAGS, chromium

HERE = Path(__file__).parent
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
            page.evaluate("document.activeElement.blur()")
            image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            image.quantize(256, dither=Image.Dither.NONE).save(HERE / f"{name}.png", optimize=True)
            page.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

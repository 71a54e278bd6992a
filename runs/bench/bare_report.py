"""The report beside pandas' `DataFrame.to_html`: what `runs.bench bare` measures of it.

That is what a reader would otherwise write in a few lines: every verdict's post, labels and rationales in one
table of one file. It has the same words, and no charts, filters or search. Both read the same run folder; no
post has a picture.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runs.bench.report import empty_tab, seconds_to_open
from runs.bench.synthetic_run import synthetic_run


def reported(folder: Path, verdicts: int, seed: int, browser: str) -> dict[str, float]:
    """Return what writing and opening takes, the page's size, and each over the bare one's."""
    from selftrain.report.run_page import write_report

    place = folder / f"report-{verdicts}-{seed}"
    run = synthetic_run(place, verdicts, pictures=0, seed=seed)
    ours = _page(lambda: write_report(run), "#list li", browser)
    bare = _page(lambda: _table(place), "tbody tr", browser)
    return {
        "write_cpu_seconds": ours["write"],
        "write_cpu_seconds, bare": bare["write"],
        "time ratio, written": ours["write"] / bare["write"],
        "open_seconds": ours["open"],
        "open_seconds, bare": bare["open"],
        "time ratio, opened": ours["open"] / bare["open"],
        "page_mb": ours["size"] / 1e6,
        "size ratio": ours["size"] / bare["size"],
    }


def _page(write: Callable[[], Path], drawn: str, browser: str) -> dict[str, float]:
    used = time.process_time()
    page = write()
    wrote = time.process_time() - used
    with empty_tab(browser) as tab:
        return {"write": wrote, "open": seconds_to_open(tab, page, drawn), "size": page.stat().st_size}


def _table(place: Path) -> Path:
    """Do what a notebook would: the lines into a table, the table into a file."""
    import pandas as pd

    page = place / "table.html"
    with pd.option_context("display.max_colwidth", None):
        pd.DataFrame(list(_rows(place))).to_html(page)
    return page


def _rows(place: Path) -> Iterator[dict[str, Any]]:
    """Yield a row a verdict, a column for each agent's every answer."""
    texts = {post["id"]: post["text"] for post in _lines(place / "manifest.jsonl")}
    for file in sorted(place.glob("run/rounds/*/verdicts.jsonl")):
        for verdict in _lines(file):
            yield {
                "round": file.parent.name,
                "post": verdict["post_id"],
                "text": texts[verdict["post_id"]],
                "classifier": f"{verdict['classifier_label']} {verdict['classifier_probability']}",
                **{f"{said['agent']} {said['step']}": _told(said) for said in verdict["judgments"]},
            }


def _told(said: dict[str, Any]) -> str:
    return f"{said['label']} {said['probability']}: {said['rationale']}"


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)

"""One page that tells a run: `report.html`, which asks for nothing from anywhere.

`page` gathers the figures from the folder's files, `drawing` draws them; in between lies plain data. The
browser of verdicts is gathered in `browser` and runs in browser.js, the page's only script. What comes from
posts, agents or files is data everywhere: control characters are written as escapes, templates escape, the
script sets text alone, and a content security policy stands behind them.
"""

from __future__ import annotations

from pathlib import Path

from selftrain.report.render import render
from selftrain.report.run_page import gather
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder

__all__ = ["gather", "render", "write_report"]


def write_report(folder: RunFolder, out: Path | None = None) -> Path:
    """Render the report anew, `report.html` in the run folder or `out`, and give its path.

    Raises:
        RunStateError: No run folder, or a damaged one.
        StorageError: The disk is full or refuses; an older report is as it was.
    """
    path = folder.path / "report.html" if out is None else out
    atomic.write_text(path, render(gather(folder)))
    return path

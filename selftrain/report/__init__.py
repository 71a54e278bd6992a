"""What a run has come to: its page, `report.html`, which needs no other file; `status`; comparisons.

`run_page` gathers the figures from the folder's files and draws them; the browser of verdicts is gathered in
`verdict_browser` and runs in verdicts.js. `model_page` does the same for a model of AgentPS. What comes from
posts, agents or files is data everywhere: control characters are written as escapes, templates escape, the
scripts set text alone, and a content security policy stands behind them.
"""

from __future__ import annotations

from pathlib import Path

from selftrain.report.run_page import gather, render
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder

__all__ = ["gather", "render", "write_report"]


def write_report(folder: RunFolder, out: Path | None = None) -> Path:
    """Render the report anew, `report.html` in the run folder or `out`, and return its path.

    Raises:
        RunStateError: No run folder, or a damaged one.
        StorageError: The disk is full or refuses; an older report is as it was.
    """
    path = folder.path / "report.html" if out is None else out
    atomic.write_text(path, render(gather(folder)))
    return path

"""One page of a model: its figures, its curves, its training, and every post that it was measured on.

It is built as the page of a run is (`selftrain.report`): `model_contents` reads the folder, `model_cases`
lays out the case table, `model_render` draws; cases.js is the page's own script.
"""

from __future__ import annotations

from pathlib import Path

from selftrain.report.model_page.model_contents import gather
from selftrain.report.model_page.model_render import render
from selftrain.store import atomic

__all__ = ["gather", "render", "write_report"]


def write_report(folder: Path, out: Path) -> None:
    """Draw the page of a model's folder, or of one that `selftrain agentps evaluate` wrote, into `out`.

    Args:
        folder: Holds task.toml, metrics.json and validation.jsonl; of a trained model also agentps.json and
            losses.jsonl.
        out: The file; replaced whole, or left as it was.

    Raises:
        ModelError: No such folder, or a damaged one.
        TaskError: Its task cannot be read.
        StorageError: The disk is full or refuses.
    """
    atomic.write_text(out, render(gather(folder)))

"""How figures are shown: lines of a table in Markdown, and plots as SVG."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure


def table_head(*columns: str) -> Iterator[str]:
    """Yield the head of a table."""
    yield table_line(*columns)
    yield "|---" * len(columns) + "|"


def table_line(*cells: str) -> str:
    """Return a line of a table."""
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def short(value: float, digits: int) -> str:
    """Return a number without the nought before its point."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{round(value, digits) + 0.0:.{digits}f}")


@contextmanager
def svg(file: Path, salt: str) -> Iterator[Callable[..., tuple[Figure, Any]]]:
    """Lend `subplots` of pyplot, and write what it began; the same figures give the same bytes."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 9})
    yield plt.subplots
    plt.savefig(file, metadata={"Date": None})
    plt.close()

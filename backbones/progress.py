"""Progress bars."""

from __future__ import annotations

from typing import Any


def progress_bar(*items: Any, **shown: Any) -> Any:  # noqa: ANN401 -- as tqdm takes and gives it
    """Return a bar of tqdm's without the thread that watches over its bars.

    Where memory ends, a thread may never begin, and Python waits for it for ever.
    """
    from tqdm import tqdm

    tqdm.monitor_interval = 0
    return tqdm(*items, **shown)

"""The one page of the review, rendered once: what changes comes later, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selftrain._util.printable import printable
from selftrain.review.ledger_reader import UNSURE
from selftrain.review.page.material import Policy
from selftrain.web.html import RenderedPage, as_json, render_page


def render_review(
    name: str,
    classes: Sequence[str],
    policy: Policy,
    *,
    lease_seconds: float,
    command: str,
    train: str,
    show_opinions: bool,
) -> RenderedPage:
    """Return the page of a run.

    Args:
        name: The run's, as the heading has it.
        classes: The task's; their keys are 1, 2, ... in this order.
        policy: The task in words.
        lease_seconds: How long a post is kept without a word from the page.
        command: What to run once everything is reviewed.
        train: What trains a classifier on the reviews.
        show_opinions: Whether machines' labels are shown before the reviewer's.
    """
    settings = {
        "classes": [{"name": one, "shown": printable(one)} for one in classes],
        "unsure": UNSURE, "lease": lease_seconds, "opinions": show_opinions,
        "command": printable(command), "train": printable(train),
    }  # fmt: skip
    values = {
        "name": name,
        "task": policy.name,
        "policy": policy.text,
        "classes": [(one, "", policy.meanings.get(one, "")) for one in classes],
        "settings": as_json(settings),
        "show_opinions": show_opinions,
    }
    return render_page(
        "review.html.j2", values, folder=Path(__file__).parent,
        scripts=("page.js", "review.js"), styles=("review.css",), served=True,
    )  # fmt: skip

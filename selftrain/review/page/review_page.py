"""The one page of the review, drawn once: what changes comes later, as JSON."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from selftrain import web
from selftrain._util.printable import printable, printable_lines
from selftrain.review.ledger_reader import UNSURE
from selftrain.review.page.material import Policy
from selftrain.web.embedding import as_json

_HERE, _WEB = Path(__file__).parent, Path(web.__file__).parent


class ReviewPage(NamedTuple):
    """What a reviewer's browser is given first.

    Attributes:
        html: With `mark` where the nonce of one answer belongs.
        mark: Drawn at random, so that no text of the task holds it.
    """

    html: str
    mark: str

    def with_nonce(self, nonce: str) -> str:
        """The page for one answer, whose security policy names this nonce."""
        return self.html.replace(self.mark, nonce)


def draw_page(
    name: str,
    classes: Sequence[str],
    policy: Policy,
    *,
    lease_seconds: float,
    command: str,
    show_opinions: bool,
) -> ReviewPage:
    """The page of a run.

    Args:
        name: The run's, as the heading has it.
        classes: The task's; their keys are 1, 2, ... in this order.
        policy: The task in words.
        lease_seconds: How long a post is kept without a word from the page.
        command: What to run once everything is reviewed.
        show_opinions: Whether machines are heard before the reviewer.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, finalize=_shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    settings = {
        "classes": [{"name": one, "shown": printable(one)} for one in classes],
        "unsure": UNSURE, "lease": lease_seconds, "opinions": show_opinions,
        "command": printable(command),
    }  # fmt: skip
    mark = secrets.token_hex(16)
    html = environment.get_template("review.html.j2").render(
        name=name,
        task=policy.name,
        policy=policy.text,
        classes=[(one, policy.meanings.get(one, "")) for one in classes],
        settings=as_json(settings),
        style=_own(_WEB / "page.css", _HERE / "review.css"),
        script=_own(_WEB / "page.js", _HERE / "review.js"),
        nonce=mark,
        show_opinions=show_opinions,
    )
    return ReviewPage(html, mark)


def security_policy(nonce: str) -> str:
    """This style sheet, this script, this server; nothing else, and no frame around it."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _own(*files: Path) -> Markup:
    return Markup("\n").join(Markup(file.read_text(encoding="utf-8")) for file in files)


def _shown(value: object) -> str:
    return value if isinstance(value, Markup) else printable_lines(str(value))

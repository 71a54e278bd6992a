"""From plain data to a page: the templates, their escaping, and what a browser may do with the result."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from selftrain._util.printable import printable_lines

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent
_DASH = "\N{EN DASH}"


class RenderedPage(NamedTuple):
    """A page, and the content security policy that belongs to it; a page that is a file holds its own."""

    html: str
    security_policy: str


def render_page(
    template: str,
    values: Mapping[str, Any],
    *,
    folder: Path,
    scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
    served: bool = False,
) -> RenderedPage:
    """Render a template as a page that runs nothing but `scripts`.

    Args:
        template: Its file's name; it extends base.html.j2.
        values: What it draws. Strings are escaped, and their control characters shown as escapes; only
            `Markup`, which this package makes from its own charts and files, goes in as it is.
        folder: Where the page's package keeps its files; what is not there is taken from here.
        scripts: Names of JavaScript files, which become one script in this order; none: the page has none.
        styles: Names of style sheets that follow page.css.
        served: Whether a server of ours answers the page's requests; else it asks for nothing at all.
    """
    style, script = _read(("page.css", *styles), folder), _read(scripts, folder)
    policy = security_policy(style, script, served=served)
    page = {"style": style, "script": script, "security_policy": None if served else policy}
    return RenderedPage(_environment(folder).get_template(template).render({**values, **page}), policy)


@cache  # templates are compiled once a process
def _environment(folder: Path) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": lambda value: _DASH if value is None else f"{value:.3f}",
        "count": lambda value: _DASH if value is None else f"{value:,.0f}",
        "signed": lambda value: f"{value:+.3f}",
        "percent": lambda value: f"{value:.0%}",
    }
    return environment


def security_policy(style: str, script: str, *, served: bool = False) -> str:
    """Return the policy that allows this style sheet, this script ("": none), and no other.

    A served page may have pictures and answers of its own server, and no frame around it, a rule that only a
    header may give; else the only pictures are those that the page itself holds.
    """
    allowed = f"'sha256-{_sha256(script)}'" if script else "'none'"
    own = "img-src 'self'; connect-src 'self'; frame-ancestors 'none'"
    sources = own if served else "img-src data:"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'sha256-{_sha256(style)}'; {sources};"
        " base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def as_json(value: object) -> Markup:
    """Return JSON for a script element: ASCII, and nothing in it ends the element or steers a reader.

    Raises:
        ValueError: A number that is not finite.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def isolated(text: str, name: str) -> Markup:
    """Return `text` with a name in place of {}, which disturbs nothing around it, whatever its script."""
    return Markup(text).format(Markup("<bdi>{}</bdi>").format(printable_lines(name)))


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _read(names: Sequence[str], folder: Path) -> Markup:
    files = (folder / name if (folder / name).exists() else _HERE / name for name in names)
    return Markup("").join(Markup(file.read_text(encoding="utf-8")) for file in files)


def _shown(value: object) -> str:
    """Return any value on its way into the page; a plain string, unless this package made it as markup."""
    return value if isinstance(value, Markup) else printable_lines(str(value))

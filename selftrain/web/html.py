"""From plain data to a page: the templates, their escaping, and what a browser may do with the result."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from selftrain._util.printable import printable_lines
from selftrain.web.charts import SERIES

_HERE = Path(__file__).parent


def render_template(
    name: str,
    values: Mapping[str, Any],
    *,
    scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
    folder: Path,
) -> str:
    """A template as a page that asks for nothing and runs nothing but `scripts`.

    Args:
        name: The template, which extends base.html.j2.
        values: What it draws. Strings are escaped, and their control characters shown as escapes; only
            `Markup`, which this package makes from its own charts and files, goes in as it is.
        scripts: Names of JavaScript files, which become one script in this order; none: the page has none.
        styles: Names of style sheets that follow page.css.
        folder: Where the page's package keeps its files; what is not there is taken from here.
    """
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
        "figure": _figure, "count": _count, "signed": _signed, "percent": _percent, "series": _series,
    }  # fmt: skip
    style, code = _own(("page.css", *styles), folder), _own(scripts, folder)
    page = {"style": style, "script": code, "security_policy": security_policy(style, code)}
    return environment.get_template(name).render({**values, **page})


def security_policy(style: str, script: str) -> str:
    """Nothing from anywhere: this style sheet, this script, and pictures that the page itself holds."""
    allowed = f"'sha256-{_sha256(script)}'" if script else "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'sha256-{_sha256(style)}'; img-src data:;"
        " base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _own(names: Sequence[str], folder: Path) -> Markup:
    files = (folder / name if (folder / name).exists() else _HERE / name for name in names)
    return Markup("").join(Markup(file.read_text(encoding="utf-8")) for file in files)


def _shown(value: object) -> str:
    """Any value on its way into the page; a plain string, unless this package made it as markup."""
    return value if isinstance(value, Markup) else printable_lines(str(value))


def _figure(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.3f}"


def _count(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:,.0f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _series(names: Iterable[str]) -> list[tuple[str, str]]:
    """Names with the colours in which a chart draws them, in order."""
    return list(zip(SERIES, names, strict=False))

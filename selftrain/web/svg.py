"""A matplotlib figure as inline SVG that follows the page: its colours, its font, its light or dark.

matplotlib writes colours and fonts into style attributes. A page with a strict content security policy
takes none, and a fixed colour is wrong in one of the two themes. So each colour of a chart is one of
`COLOURS`, placeholders that become classes (`fill-ink`, `stroke-first`), and everything else of a style
becomes an attribute.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# name in the style sheet -> the placeholder that matplotlib draws with
COLOURS = {
    name: f"#0{number:x}0{number:x}0{number:x}"
    for number, name in enumerate(("ink", "faint", "rule", "paper", "first", "second", "third", "fourth"), 1)
}
_NAMES = {value: name for name, value in COLOURS.items()}
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_DROPPED = {"font-family", "font", "font-style", "font-weight"}  # the page's own
MARK = "mark-"
"""Artists whose gid begins so keep it, as a class: `mark-kept`."""


def to_svg(figure: Figure, name: str, description: str, *, when: str = "") -> Markup:
    """Return the figure as an SVG element.

    Args:
        figure: Drawn with the colours of `COLOURS` alone.
        name: Unique in its page: prefixes the ids inside.
        description: What a screen reader says of it.
        when: A further class, for a chart that only some pages show.

    Raises:
        ValueError: A colour that is none of `COLOURS`.
    """
    import matplotlib

    written = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "path.simplify": True}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    root = ElementTree.fromstring(written.getvalue())
    used = {one.decode() for one in re.findall(rb'#([\w-]+)["\)]', written.getvalue())}
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag == f"{_SVG}metadata" or child.find(f"{_SVG}style") is not None:
                parent.remove(child)
    for element in root.iter():
        _tidy(element, name, used)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"class": f"chart {when}".strip(), "role": "img", "aria-label": description}
    ElementTree.register_namespace("", _SVG.strip("{}"))
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _tidy(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    """Clean one element in place: no style, an id that is unique in the page, links without xlink."""
    classes = []
    for declaration in filter(None, element.attrib.pop("style", "").split(";")):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name in ("fill", "stroke") and value != "none":
            if value not in _NAMES:
                raise ValueError(f"{name} {value} in a chart: expected one of {sorted(COLOURS)}")
            classes.append(f"{name}-{_NAMES[value]}")
        elif name not in _DROPPED:
            element.set(name, value)
    identity = element.attrib.pop("id", "")
    if identity.startswith(MARK):
        classes.append(identity)
    elif identity in used:
        element.set("id", f"{prefix}-{identity}")
    if link := element.attrib.pop(f"{_XLINK}href", ""):
        element.set("href", f"#{prefix}-{link.removeprefix('#')}")
    if clip := element.get("clip-path"):
        element.set("clip-path", clip.replace("url(#", f"url(#{prefix}-"))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if classes:
        element.set("class", " ".join(classes))
    # line breaks between elements are only weight
    element.text, element.tail = (
        (text if (text or "").strip() else None) for text in (element.text, element.tail)
    )

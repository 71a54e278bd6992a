"""The charts of the pages: plain numbers in, SVG out. Words from a run never enter a chart.

Legends stand in the page, beside the chart: they wrap, and whatever a class is called stays text. Of every
chart `name` prefixes the ids inside of its SVG, and `what` is what a screen reader says.

A chart follows its page: its colours, its font, its light or dark. matplotlib writes colours and fonts into
style attributes. A page with a strict content security policy takes none, and a fixed colour is wrong in one
of the two themes. So each colour of a chart is one of `COLOURS`, placeholders that become classes
(`fill-ink`, `stroke-first`), and everything else of a style becomes an attribute.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW, SMALL = (1040, 300), (343, 220), (343, 210)
"""Sizes in CSS pixels at which a chart's letters are as large as intended."""

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
SERIES = ("first", "second", "third", "fourth")
_FEW = 14  # rounds up to which every one has a tick


class ChartPanel(NamedTuple):
    """A chart in its page: title, what stands under that, the SVG, class and text of each legend entry."""

    title: str
    under: str
    chart: Markup
    legend: Sequence[tuple[str, str]] = ()


def legend(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the legend of a chart that draws `names` in the order of `SERIES`."""
    return list(zip(SERIES, names, strict=False))


class RoundPoint(NamedTuple):
    """One round on the curve: macro-F1 on both splits; `test` is None without a test split."""

    number: int
    kept: bool
    validation: float
    test: float | None


# ---- rounds -----------------------------------------------------------------------------------------


def rounds_curve(points: Sequence[RoundPoint]) -> Markup:
    """Draw macro-F1 over rounds: kept ones filled and joined, rolled back ones hollow, hung on a thread."""

    def draw(axes: Axes) -> None:
        _curve(axes, points, "validation", [point.validation for point in points])
        tests = [point.test for point in points if point.test is not None]
        if len(tests) == len(points):
            _curve(axes, points, "test", tests)
        _rounds_axis(axes, [point.number for point in points])

    outcomes = ", ".join(
        f"round {p.number} {p.validation:.3f} {'kept' if p.kept else 'rolled back'}" for p in points[-20:]
    )
    return _both_widths(draw, f"Validation macro-F1 by round: {outcomes}. The table below has all figures.")


def _curve(axes: Axes, points: Sequence[RoundPoint], split: str, values: Sequence[float]) -> None:
    colour, marker = (COLOURS["first"], "o") if split == "validation" else (COLOURS["second"], "s")
    numbers, best = [point.number for point in points], None
    for i, point in enumerate(points):
        if point.kept:
            best = i
        elif best is not None:
            axes.plot([numbers[best], numbers[i]], [values[best], values[i]], color=colour, lw=1, ls=":")
    style: Any = {"color": colour, "marker": marker, "ms": 8 if len(points) <= _FEW else 5}
    lost: Any = {"lw": 0, "mfc": COLOURS["paper"], "mew": 1.8}
    for name, kept, look in (("kept", True, {"lw": 2.2}), ("lost", False, lost)):
        chosen = [i for i, point in enumerate(points) if point.kept is kept]
        across, up = [numbers[i] for i in chosen], [values[i] for i in chosen]
        axes.plot(across, up, gid=f"{MARK}{name}-{split}", **style, **look)


def runs_curve(runs: Sequence[Sequence[RoundPoint]]) -> Markup:
    """Draw validation macro-F1 of the best model so far, a step line a run."""

    def draw(axes: Axes) -> None:
        for number, run in enumerate(runs):
            best, scores = 0.0, []
            for point in run:
                best = point.validation if point.kept else best
                scores.append(best)
            axes.plot(
                [point.number for point in run], scores, drawstyle="steps-post", lw=2,
                color=COLOURS[SERIES[number % len(SERIES)]], ls=("-", "--", ":")[number // len(SERIES) % 3],
                marker="o", ms=4, gid=f"{MARK}run",
            )  # fmt: skip
        _rounds_axis(axes, range(max((run[-1].number for run in runs if run), default=0) + 1))

    return _both_widths(draw, "Validation macro-F1 of the best model so far, by round, for every run")


def _both_widths(draw: Callable[[Axes], None], what: str) -> Markup:
    """Return the curve twice: the style sheet shows the one that fits the window."""
    drawn = Markup("")
    for width, size in (("wide", WIDE), ("narrow", NARROW)):
        with _figure(size) as (figure, axes):
            draw(axes)
            axes.margins(x=0.03, y=0.14)
            drawn += to_svg(figure, f"curve-{width}", what, when=f"only-{width}")
    return drawn


def stacked_bars(
    rounds: Sequence[int], parts: Sequence[Sequence[int]], kept: Sequence[bool], name: str, what: str
) -> Markup:
    """Draw counts by round, one bar a round, its parts on each other; rolled back rounds are drawn pale.

    `parts` has a count a round for each part, in the order of `SERIES`.
    """
    with _figure(SMALL) as (figure, axes):
        floor = [0] * len(rounds)
        for colour, counts in zip(SERIES, parts, strict=False):
            for number, count, base, full in zip(rounds, counts, floor, kept, strict=True):
                if not full:  # no grid shines through a pale bar
                    axes.bar(number, count, 0.68, base, color=COLOURS["paper"], lw=0)
                axes.bar(
                    number, count, 0.68, base, color=COLOURS[colour], alpha=1 if full else 0.38, lw=0,
                    gid=f"{MARK}bar",
                )  # fmt: skip
            floor = [base + count for base, count in zip(floor, counts, strict=True)]
        _rounds_axis(axes, rounds)
        axes.set_ylim(0, max([*floor, 1]) * 1.08)
        axes.yaxis.set_major_locator(_whole())
        return to_svg(figure, name, what)


def lines(
    across: Sequence[float], series: Mapping[str, Sequence[float | None]], name: str, what: str,
    *, share: bool = False, marker: str = "o", kept: float | None = None,
) -> Markup:  # fmt: skip
    """Draw a line a series, in the order of `SERIES`, over rounds or epochs; None is a gap.

    `share` says that the values are shares, whose axis ends at 1; `marker` is matplotlib's, "" for none;
    `kept` is one of `across`, marked by an upright line.
    """
    with _figure(SMALL) as (figure, axes):
        if kept is not None:
            axes.axvline(kept, color=COLOURS["faint"], lw=1.4, ls="--", gid=f"{MARK}kept")
        for colour, values in zip(SERIES, series.values(), strict=False):
            known = [float("nan") if value is None else value for value in values]
            axes.plot(across, known, color=COLOURS[colour], lw=1.8, marker=marker, ms=5)
        _rounds_axis(axes, across)
        if share:
            low = min((v for values in series.values() for v in values if v is not None), default=0)
            axes.set_ylim(max(0.0, min(low - 0.05, 0.8)), 1.01)
        else:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        return to_svg(figure, name, what)


# ---- the model --------------------------------------------------------------------------------------


def precision_recall_chart(
    curves: Sequence[tuple[Sequence[float], Sequence[float]]],
    name: str,
    what: str,
    *,
    base_rate: float | None = None,
) -> Markup:
    """Draw precision over recall, rising, of each curve in the order of `SERIES`.

    `base_rate` is what choosing blindly reaches, drawn as a level line.
    """
    with _figure(SMALL) as (figure, axes):
        if base_rate is not None:
            axes.axhline(base_rate, color=COLOURS["faint"], lw=1.4, ls="--", gid=f"{MARK}base-rate")
        for colour, (recall, precision) in zip(SERIES, curves, strict=False):
            axes.plot(recall, precision, color=COLOURS[colour], lw=1.8, drawstyle="steps-post")
        low = min((min(precision) for _, precision in curves), default=0)
        low = low if base_rate is None else min(low, base_rate)
        axes.set_ylim(max(0.0, min(low, 0.5) - 0.05), 1.03)
        _share_axis(axes, "recall", "precision")
        return to_svg(figure, name, what)


def reliability_chart(diagrams: Sequence[Sequence[tuple[float, float, int]]], name: str, what: str) -> Markup:
    """Draw how often it was so over the probability that was said, and the diagonal.

    A diagram, one each in the order of `SERIES`, is its bins: mean probability, share, posts.
    """
    with _figure(SMALL) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=COLOURS["rule"], lw=1.2)
        for colour, dots in zip(SERIES, diagrams, strict=False):
            across, up = [probability for probability, _, _ in dots], [share for _, share, _ in dots]
            most = max((posts for _, _, posts in dots), default=1)
            axes.plot(across, up, color=COLOURS[colour], lw=1.4)
            # a dot's area follows its posts: a bin of three says little
            areas = [14 + 70 * posts / most for _, _, posts in dots]
            axes.scatter(across, up, s=areas, color=COLOURS[colour], lw=0)
        axes.set_ylim(-0.02, 1.02)
        _share_axis(axes, "probability said", "share that was so")
        return to_svg(figure, name, what)


def histogram_chart(positive: Sequence[int], negative: Sequence[int], name: str, what: str) -> Markup:
    """Draw posts by predicted probability: those of the positive class upwards, the others downwards."""
    with _figure(SMALL) as (figure, axes):
        width = 1 / len(positive)
        middles = [(number + 0.5) * width for number in range(len(positive))]
        axes.bar(middles, positive, width * 0.86, color=COLOURS["first"], lw=0)
        axes.bar(middles, [-count for count in negative], width * 0.86, color=COLOURS["second"], lw=0)
        axes.axhline(0, color=COLOURS["faint"], lw=1)
        most = max(*positive, *negative, 1) * 1.1
        axes.set_ylim(-most, most)
        axes.yaxis.set_major_locator(_whole())
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        _share_axis(axes, "probability said")
        return to_svg(figure, name, what)


def intervals_chart(rows: Sequence[tuple[float, float, float]], name: str, what: str) -> Markup:
    """Draw a dot and its interval a row, the first row at the top; a row is value, low and high."""
    with _figure((343, 24 * len(rows) + 44)) as (figure, axes):
        for place, (value, low, high) in enumerate(rows):
            axes.plot([low, high], [place, place], color=COLOURS["first"], lw=2, alpha=0.55)
            axes.plot(value, place, color=COLOURS["first"], marker="o", ms=8)
        axes.set_yticks(range(len(rows)), [str(number) for number in range(1, len(rows) + 1)])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        return to_svg(figure, name, what)


# ---- what all share ---------------------------------------------------------------------------------


@contextmanager
def _figure(size: tuple[int, int]) -> Iterator[tuple[Figure, Axes]]:
    """Open a figure of `size` pixels with one pair of axes: a light grid, no frame, little ink."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "font.size": 11, "text.parse_math": False, "text.color": COLOURS["faint"],
        "axes.labelcolor": COLOURS["faint"], "axes.labelsize": 11, "axes.axisbelow": True,
        "axes.edgecolor": COLOURS["rule"], "axes.linewidth": 1, "axes.grid": True, "axes.grid.axis": "y",
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "axes.unicode_minus": False, "axes.formatter.useoffset": False,
        "xtick.color": COLOURS["faint"], "ytick.color": COLOURS["faint"],
        "xtick.major.size": 0, "ytick.major.size": 0, "xtick.major.pad": 6, "ytick.major.pad": 6,
        "grid.color": COLOURS["rule"], "grid.linewidth": 1,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
        yield figure, figure.add_subplot()


def _fit(figure: Figure, axes: Axes) -> None:
    """Leave room for ticks and labels by how many letters they have: the page draws them in its own font.

    matplotlib's layouts measure each letter, twice, in a font that is not shown: most of a drawing's time.
    """
    width, height = figure.get_size_inches() * figure.dpi
    up, across = (
        [text.get_text() for text in axis.get_majorticklabels()] for axis in (axes.yaxis, axes.xaxis)
    )
    left = 10 + 6.5 * max(map(len, up), default=0) + (17 if axes.get_ylabel() else 0)
    right = 6 + 3.2 * max(map(len, across[-2:]), default=0)
    bottom = 24 + (17 if axes.get_xlabel() else 0)
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - 10 / height)


def _rounds_axis(axes: Axes, numbers: Sequence[float]) -> None:
    if len(numbers) <= _FEW:
        axes.set_xticks(list(numbers), [f"{number:g}" for number in numbers])
    else:
        axes.xaxis.set_major_locator(_whole())


def _share_axis(axes: Axes, across: str, up: str = "") -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(across)
    axes.set_ylabel(up)


def _whole() -> Any:  # noqa: ANN401 -- matplotlib's locator
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, integer=True)


# ---- from matplotlib to the page ---------------------------------------------------------------------


def to_svg(figure: Figure, name: str, description: str, *, when: str = "") -> Markup:
    """Return a figure that is drawn with the colours of `COLOURS` alone as an SVG element.

    `when` is a further class, for a chart that only some pages show.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    written = io.BytesIO()
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):  # what lies below shines through
        patch.set(facecolor="none", edgecolor="none")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "path.simplify": True}):
        for axes in figure.axes:
            _fit(figure, axes)
        # `savefig` would draw everything twice, the first time for a layout
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(written, metadata={"Date": None, "Creator": None})
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

"""One page that tells a run: `report.html`, gathered here from the folder's files, drawn in report.html.j2.

The page holds no script and asks for nothing from anywhere. What comes from posts, agents or files is data:
control characters are written as escapes, and the template escapes everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from selftrain import atomic
from selftrain.errors import ManifestError, RunStateError
from selftrain.printable import printable
from selftrain.run.folder import RunFolder, read_jsonl
from selftrain.run.summary import Score, Summary, score, summarise, why_stopped

Json = dict[str, Any]

QUARANTINED, DIVERGENT, TEXT = 200, 50, 1000  # rows, verdicts and characters of a post that are shown
_TEMPLATE = Path(__file__).with_name("report.html.j2")


class Row(NamedTuple):
    """One round in the table and in the plot.

    Attributes:
        number: 0 is the labels alone.
        outcome: "labels alone", "kept" or "rolled back".
        kept: What the plot fills.
        score: Macro-F1.
        across, up: Place in the plot, both in [0, 1].
        figures: The content of metrics.json.
    """

    number: int
    outcome: str
    kept: bool
    score: Score
    across: float
    up: float
    figures: Json


class Dispute(NamedTuple):
    """A divergent verdict.

    Attributes:
        text: None when the run's manifests are not there any more.
        verdict: The record of verdicts.jsonl.
    """

    text: str | None
    verdict: Json


class Page(NamedTuple):
    """All that the template draws.

    Attributes:
        quarantine: The first rows of quarantine.jsonl, of `quarantined` in all.
        disputes: The first divergent verdicts of the last finished round, of `disputed` in all.
        lowest, highest: Validation macro-F1 at the foot and at the top of the plot.
    """

    name: str
    simulated: bool
    environment: Json
    summary: Summary
    stopped: str | None
    rows: Sequence[Row]
    lowest: float
    highest: float
    recipe: Mapping[str, Json]
    quarantine: Sequence[Json]
    quarantined: int
    disputes: Sequence[Dispute]
    disputed: int


def write_report(folder: RunFolder) -> Path:
    """Render `report.html` anew and give its path.

    Raises:
        RunStateError: No run folder, no finished round, or a damaged folder.
        StorageError: The disk is full or refuses; an older report is as it was.
    """
    path = folder.path / "report.html"
    try:
        page = gather(folder)
    except (KeyError, TypeError) as error:
        raise RunStateError(
            f"{folder.path} has records that are incomplete ({error!r}): the folder is damaged"
        ) from error
    atomic.write_text(path, render(page))
    return path


def render(page: Page) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    return environment.get_template(_TEMPLATE.name).render(page._asdict())


def _shown(value: object) -> str:
    """Any value on its way into the page. It is a plain string, so that nothing escapes the escaping."""
    return "\n".join(map(printable, str(value).split("\n")))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# ---- gathering --------------------------------------------------------------------------------------


def gather(folder: RunFolder) -> Page:
    """Everything the page tells.

    Raises:
        RunStateError: See `write_report`.
    """
    recipe = folder.recipe()
    folder.best_round()  # says what to do when no round is finished
    rounds = folder.finished_rounds()
    environment = folder.environment()
    divergent = [v for v in folder.verdicts(len(rounds) - 1) if not v["consistent"]]
    shown = divergent[:DIVERGENT]
    texts = _texts(recipe["data"], {verdict["post_id"] for verdict in shown})
    quarantine, quarantined = _quarantine(folder.path / "quarantine.jsonl")
    summary = summarise(rounds)
    lowest, highest = _range([score(figures).validation for figures in rounds])
    return Page(
        name=folder.path.resolve().name,
        simulated=bool(environment.get("simulated")) or summary.simulated,
        environment=environment,
        summary=summary,
        stopped=why_stopped(folder),
        rows=[_row(figures, len(rounds), lowest, highest) for figures in rounds],
        lowest=lowest,
        highest=highest,
        recipe=_sections(recipe),
        quarantine=quarantine,
        quarantined=quarantined,
        disputes=[Dispute(texts.get(verdict["post_id"]), verdict) for verdict in shown],
        disputed=len(divergent),
    )


def _row(figures: Json, rounds: int, lowest: float, highest: float) -> Row:
    number, kept, scores = int(figures["round"]), bool(figures["kept"]), score(figures)
    return Row(
        number=number,
        outcome="labels alone" if number == 0 else "kept" if kept else "rolled back",
        kept=kept,
        score=scores,
        across=number / max(rounds - 1, 1),
        up=(scores.validation - lowest) / (highest - lowest),
        figures=figures,
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From below the lowest value to above the highest; never empty."""
    margin = max((max(values) - min(values)) * 0.1, 0.01)
    return min(values) - margin, max(values) + margin


def _sections(recipe: Mapping[str, Any]) -> dict[str, Json]:
    """Section -> its keys; what stands outside of any section comes first, under ""."""
    outside = {key: value for key, value in recipe.items() if not isinstance(value, dict)}
    sections = {key: value for key, value in recipe.items() if isinstance(value, dict)}
    return ({"": outside} if outside else {}) | sections


def _quarantine(file: Path) -> tuple[list[Json], int]:
    """The first rows, and how many there are."""
    if not file.exists():
        return [], 0
    rows: Iterator[Json] = read_jsonl(file)
    first = list(islice(rows, QUARANTINED))
    return first, len(first) + sum(1 for _ in rows)


def _texts(section: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, str]:
    """Texts of posts by id, from the run's manifests, each read once; what is not found is left out."""
    from selftrain.data.manifest_files import read_rows

    missing, found = set(wanted), dict[str, str]()
    for name in ("manifest", "pool", "validation", "test"):
        if name not in section or not missing:
            continue
        try:
            for raw in read_rows(Path(section[name])):
                post_id = str((raw.fields or {}).get("id")).strip()
                if raw.fields is not None and post_id in missing:
                    found[post_id] = _shortened(str(raw.fields.get("text") or ""))
                    missing.discard(post_id)
                    if not missing:
                        break
        except (ManifestError, OSError):
            continue  # the manifest went: the verdicts are told without texts
    return found


def _shortened(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[:TEXT]} [...]"

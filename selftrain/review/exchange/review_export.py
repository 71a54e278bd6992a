"""Posts to review in your own tool: Label Studio tasks with predictions and a configuration, or a table.

Label Studio's format is that of https://labelstud.io/guide/tasks (tasks, predictions). Posts are written by
strangers: a cell that a spreadsheet would run as a formula gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

from agents.judgment import State
from selftrain._util.choices import Pictures
from selftrain._util.spreadsheet import NUMBER, escape
from selftrain._util.types import Json
from selftrain.data.run_posts import find_posts
from selftrain.errors import ExchangeError
from selftrain.review.ledger_reader import LEDGER, UNSURE, LedgerReader
from selftrain.review.opinions import Opinion, Opinions
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder
from selftrain.web.pictures import as_webp, data_url

CONTROL, TEXT = "label", "text"
"""Names of the choice and of the text that it is about, in the configuration and in every result."""
SIDE, QUALITY = 1024, 80
"""Pixels of the longer side of an embedded picture, at most, and its WebP quality."""
COLUMNS = ("post_id", "batch", "label", "reviewer", "text", "images", "opinions")
"""Of the table; whoever reviews fills in `label` and `reviewer`."""


class ReviewTask(NamedTuple):
    """One post that waits for a review."""

    post_id: str  # as in the ledger
    batch: str  # of the ledger
    place: int  # in the order of this file, from 0
    text: str  # may be empty
    images: tuple[Path, ...]  # absolute paths
    names: tuple[str, ...]  # the same, relative to the manifest
    opinions: tuple[Opinion, ...]  # the classifier's first; empty where they are hidden


class ReviewTasks(NamedTuple):
    """All that waits, and the classes to choose from."""

    tasks: tuple[ReviewTask, ...]
    classes: tuple[str, ...]


def gather_tasks(folder: RunFolder, *, hide_opinions: bool = False, everything: bool = False) -> ReviewTasks:
    """Gather the posts of a run that lack a review, in the order in which they are handed out.

    Raises:
        ExchangeError: A post's row is gone from the run's manifests: there is nothing to show.
    """
    folder.recipe()  # no run folder: said before anything else
    with LedgerReader(folder.path / LEDGER) as ledger:
        drawn, classes = ledger.all_drawn(), ledger.classes
        chosen = list(drawn) if everything else ledger.waiting()
    posts = find_posts(folder, chosen)
    gone = [post_id for post_id in chosen if post_id not in posts or posts[post_id].reason]
    if gone:
        reason = posts[gone[0]].reason if gone[0] in posts else "no row of that id"
        raise ExchangeError(
            f"{len(gone)} of {len(chosen)} posts to review are not in the run's manifests as they were, the"
            f" first is {gone[0]!r} ({reason}): put the manifest and its pictures back"
        )
    opinions = None if hide_opinions else Opinions(folder)
    tasks = []
    for place, post_id in enumerate(chosen):
        post, (batch, _) = posts[post_id], drawn[post_id]
        given = () if opinions is None else opinions.of(post_id)
        tasks.append(ReviewTask(post_id, batch, place, post.text, post.images, post.names, given))
    return ReviewTasks(tuple(tasks), classes)


def write_label_studio(
    found: ReviewTasks, out: Path, *, pictures: Pictures = "data-uri", root: Path | None = None
) -> Path:
    """Write task objects, and the labelling configuration beside them; return where that lies."""
    config = labelling_config(
        found.classes,
        pictures=any(task.images for task in found.tasks),
        opinions=any(task.opinions for task in found.tasks),
    )
    tasks = list(to_tasks(found.tasks, pictures=pictures, root=root))
    beside = config_beside(out)
    atomic.write_text(beside, config)
    atomic.write_text(out, json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
    return beside


def config_beside(out: Path) -> Path:
    """Return where the labelling configuration of a file of tasks goes.

    Raises:
        ExchangeError: The tasks would take its place.
    """
    beside = out.with_suffix(".xml")
    if beside == out:
        raise ExchangeError(
            f"{out} is where the labelling configuration goes: name a file that ends in .json"
        )
    return beside


def labelling_config(classes: Sequence[str], *, pictures: bool, opinions: bool) -> str:
    """Return the labelling configuration: one choice among the classes, and unsure."""
    variable = [name for name in classes if name.startswith("$")]
    if variable:
        raise ExchangeError(f"Label Studio reads {variable[0]!r} as a variable: give the class another name")
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Text", name=TEXT, value="$text")
    if pictures:
        ElementTree.SubElement(view, "Image", name="images", valueList="$images")
    choices = ElementTree.SubElement(
        view, "Choices", name=CONTROL, toName=TEXT, choice="single-radio", required="true", showInLine="true"
    )
    for key, name in enumerate((*classes, UNSURE), 1):
        choice = ElementTree.SubElement(choices, "Choice", value=name)
        if key < 10:
            choice.set("hotkey", str(key))
    if opinions:
        ElementTree.SubElement(view, "Header", value="What machines said")
        ElementTree.SubElement(view, "Text", name="opinions", value="$opinions")
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def to_tasks(
    tasks: Sequence[ReviewTask], *, pictures: Pictures = "data-uri", root: Path | None = None
) -> Iterator[Json]:
    """Yield task objects, as Label Studio imports them.

    Pictures are embedded, scaled down and readable anywhere ("data-uri"), or URLs of Label Studio's local
    storage ("local-files"), whose LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT `root` is.

    Raises:
        ExchangeError: A picture outside `root`, or no `root` for local files.
        ImageError: A picture that cannot be decoded.
    """
    shown = any(task.opinions for task in tasks)
    for task in tasks:
        urls = [
            _local(path, root) if pictures == "local-files" else data_url(as_webp(path, SIDE, QUALITY))
            for path in task.images
        ]
        data: Json = {"post_id": task.post_id, "batch": task.batch, TEXT: task.text, "images": urls}
        if shown:
            data["opinions"] = "\n".join(map(_opinion_line, task.opinions))
        predictions = [_prediction(one) for one in task.opinions if one.last.label is not None]
        meta = {"post_id": task.post_id, "batch": task.batch, "place": task.place}
        yield {"data": data, "meta": meta, "predictions": predictions}


def _prediction(opinion: Opinion) -> Json:
    last = opinion.last
    result = {"from_name": CONTROL, "to_name": TEXT, "type": "choices", "value": {"choices": [last.label]}}
    return {"model_version": opinion.who, "score": last.probability, "result": [result]}


def _opinion_line(opinion: Opinion) -> str:
    last = opinion.last
    sure = "" if last.probability is None else f" ({last.probability:.2f})"
    added = ", ".join(f"{party} {value:+.2f}" for party, value in opinion.log_odds.items())
    why = [last.words, f"log-odds: {added}" if added else ""]
    return ": ".join([opinion.who, f"{_named(opinion)}{sure}", *filter(None, why)])


def _named(opinion: Opinion) -> str:
    """Return the label, or that there is none; of who names no class at all, what they say."""
    last = opinion.last
    return last.label or ("no label" if last.state in list(State) else last.state)


def _local(path: Path, root: Path | None) -> str:
    if root is None or not path.resolve().is_relative_to(root.resolve()):
        raise ExchangeError(
            f"{path} does not lie below {root or 'a document root, none was given'}: expected the folder that"
            " Label Studio serves local files from (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT)"
        )
    return f"/data/local-files/?d={quote(path.resolve().relative_to(root.resolve()).as_posix())}"


def to_csv(tasks: Sequence[ReviewTask]) -> str:
    """Return the table, with a byte order mark so that spreadsheets read it as UTF-8."""
    written = io.StringIO(newline="")
    writer = csv.writer(written)
    writer.writerow(COLUMNS)
    for task in tasks:
        opinions = "; ".join(f"{one.who}: {_named(one)}" for one in task.opinions)
        cells = (task.post_id, task.batch, "", "", task.text, " | ".join(task.names), opinions)
        writer.writerow([_as_text(cells[0]), *map(escape, cells[1:])])
    return "\ufeff" + written.getvalue()


def _as_text(post_id: str) -> str:
    """Return an id that a spreadsheet leaves as it is, and that no other id is written as."""
    return f"'{post_id}" if NUMBER.fullmatch(post_id.lstrip("'")) else escape(post_id)

"""Label Studio: tasks with predictions and a labelling configuration out, its JSON and JSON-MIN exports in.

The format is that of https://labelstud.io/guide/tasks (tasks, predictions) and /guide/export (results).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from xml.etree import ElementTree

from selftrain._util.types import Json
from selftrain.errors import ExchangeError
from selftrain.review.exchange.exchange_tasks import Opinion, Task
from selftrain.review.items import UNSURE

Pictures = Literal["data-uri", "local-files"]

CONTROL, TEXT = "label", "text"
"""Names of the choice and of the text that it is about, in the configuration and in every result."""
SIDE, QUALITY = 1024, 80
"""Pixels of the longer side of an embedded picture, at most, and its WebP quality."""


def labelling_config(classes: Sequence[str], *, pictures: bool, opinions: bool) -> str:
    """The labelling configuration: one choice among the classes, and unsure.

    Raises:
        ExchangeError: A class name that Label Studio would read as a variable.
    """
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
    tasks: Sequence[Task], *, pictures: Pictures = "data-uri", root: Path | None = None
) -> Iterator[Json]:
    """Task objects, as Label Studio imports them.

    Args:
        tasks: The posts.
        pictures: "data-uri": embedded, scaled down, readable anywhere. "local-files": as addresses of Label
            Studio's local storage.
        root: For local files, its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.

    Raises:
        ExchangeError: A picture outside `root`, or no `root` for local files.
        ImageError: A picture that cannot be decoded.
    """
    shown = any(task.opinions for task in tasks)
    for task in tasks:
        urls = [_local(path, root) if pictures == "local-files" else _embedded(path) for path in task.images]
        data: Json = {"post_id": task.post_id, "batch": task.batch, TEXT: task.text, "images": urls}
        if shown:
            data["opinions"] = "\n".join(map(_line, task.opinions))
        predictions = [_prediction(one) for one in task.opinions if one.label is not None]
        meta = {"post_id": task.post_id, "batch": task.batch, "place": task.place}
        yield {"data": data, "meta": meta, "predictions": predictions}


def _prediction(opinion: Opinion) -> Json:
    result = {
        "from_name": CONTROL, "to_name": TEXT, "type": "choices", "value": {"choices": [opinion.label]},
    }  # fmt: skip
    return {"model_version": opinion.who, "score": opinion.probability, "result": [result]}


def _line(opinion: Opinion) -> str:
    sure = "" if opinion.probability is None else f" ({opinion.probability:.2f})"
    why = f": {opinion.why}" if opinion.why else ""
    return f"{opinion.who}: {opinion.label or 'no label'}{sure}{why}"


def _embedded(path: Path) -> str:
    from backbones.images import open_image

    image = open_image(path, target_size=SIDE)
    image.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    image.save(written, format="WEBP", quality=QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"


def _local(path: Path, root: Path | None) -> str:
    if root is None or not path.resolve().is_relative_to(root.resolve()):
        raise ExchangeError(
            f"{path} does not lie below {root or 'a document root, none was given'}: expected the folder that"
            " Label Studio serves local files from (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT)"
        )
    return f"/data/local-files/?d={quote(path.resolve().relative_to(root.resolve()).as_posix())}"


# ---- what comes back --------------------------------------------------------------------------------


class ItemError(ValueError):
    """What is wrong with one item."""


def answers(item: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """(post id, label, reviewer, batch) of every review in one item of an export, JSON or JSON-MIN.

    An item without a review gives nothing; what a reviewer skipped (cancelled) is no review.

    Raises:
        ItemError: An item that is none of ours, or a result that is not one choice.
    """
    data = item.get("data") if "annotations" in item or "completions" in item else item
    if not isinstance(data, Mapping) or not isinstance(data.get("post_id"), str):
        raise ItemError("has no data.post_id: expected a task that `selftrain review export` wrote")
    post_id, batch = data["post_id"], str(data.get("batch") or "")
    if data is item:
        if CONTROL in item:
            yield post_id, _choice(item[CONTROL]), reviewer_name(item.get("annotator")), batch
        return
    for annotation in item.get("annotations", item.get("completions")) or []:
        if not isinstance(annotation, Mapping):
            raise ItemError(f"has an annotation that is a {type(annotation).__name__}: expected an object")
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            continue
        chosen = [
            _choice((one.get("value") or {}).get("choices"))
            for one in annotation.get("result") or []
            if isinstance(one, Mapping) and one.get("from_name") == CONTROL
        ]
        if len(chosen) != 1:
            raise ItemError(
                f"has an annotation with {len(chosen)} results for {CONTROL!r}: expected one choice"
            )
        yield post_id, chosen[0], reviewer_name(annotation.get("completed_by")), batch


def _choice(value: object) -> str:
    if isinstance(value, Mapping):
        value = value.get("choices")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise ItemError(f"has the choice {value!r}: expected one class name")
    return value


def reviewer_name(annotator: object) -> str:
    """Who has decided, by an export: the e-mail address where it tells one, else the number, or nobody."""
    if isinstance(annotator, Mapping):
        email = annotator.get("email")
        return str(email) if email else reviewer_name(annotator.get("id"))
    if isinstance(annotator, int) or (isinstance(annotator, str) and annotator.isdecimal()):
        return f"label-studio {annotator}"
    return annotator if isinstance(annotator, str) else ""

"""The posts of an evaluation as the page's case table reads them: an index of all, and the posts in chunks.

In the index each column of answers holds one list a question, the final question's first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from selftrain._util.printable import printable
from selftrain._util.types import Json
from selftrain.agentps.dataset import FINAL
from selftrain.agentps.frames import is_video
from selftrain.web.pictures import BUDGET, Pictures, embed
from selftrain.web.table import MOST_RECORDS, Control, TableData, cut_text, embed_table, fitting

LENGTHS = ((1200,), (500,), (240,), (120,))
"""Characters of a text: the first number that the page has room for."""


class Column(NamedTuple):
    """One question: what it is called and asks, its answers, and the one that scores are of."""

    name: str
    wording: str
    answers: tuple[str, ...]
    looked_for: str


class Cases(NamedTuple):
    """The case table, and whether the class of any shown post is known."""

    table: TableData
    truth_known: bool


def probs_of(row: Json, column: Column) -> Mapping[str, float]:
    """Return answer -> probability, as validation.jsonl has it of one post."""
    found: Mapping[str, float] = row["probabilities"] if column.name == FINAL else row["process"][column.name]
    return found


def truth_of(row: Json, column: Column) -> str | None:
    """Return the true answer, or None where nobody answered."""
    answer: str | None = row["truth"][column.name]
    return answer


def gather_cases(rows: Sequence[Json], columns: Sequence[Column], *, budget: int = BUDGET) -> Cases:
    """Lay out the posts in their order.

    Args:
        rows: Lines of validation.jsonl that have probabilities.
        columns: The questions, the final one first.
        budget: Characters of all pictures together; the posts that the model is most wrong about come first,
            and every post's first picture before the second of any.

    Raises:
        KeyError, ValueError: A line lacks a question, or has an answer that the question does not.
    """
    shown = rows[:MOST_RECORDS]
    index = _index(shown, columns)
    pictures = embed(_by_need(shown, index["believed"]), budget=budget)
    (length,) = fitting(LENGTHS, [len(row.get("text") or "") for row in shown])
    truth_known = any(one >= 0 for one in index["truth"][0])
    table = embed_table(
        "cases", _controls(columns, truth_known=truth_known), index,
        [_record(row, columns, pictures, length) for row in shown], pictures, total=len(rows), cut=length,
    )  # fmt: skip
    return Cases(table, truth_known)


def _controls(columns: Sequence[Column], *, truth_known: bool) -> list[Control]:
    classes = list(enumerate(columns[0].answers))
    outcomes = [
        ("", "no matter"), ("wrong", "wrong"), ("right", "right"), ("unknown", "truth not known"),
    ]  # fmt: skip
    asked = [("", "no matter"), ("any", "any process question")]
    asked += [(str(place), one.name) for place, one in enumerate(columns[1:], 1)]
    by_truth = [("truth:up", "by true class, forwards"), ("truth:down", "by true class, backwards")]
    orders = [
        *([("wrong:up", "most wrong first")] if truth_known else []),
        ("file:up", "as in the file"), ("id:up", "by id, forwards"), ("id:down", "by id, backwards"),
        *(by_truth if truth_known else []),
    ]  # fmt: skip
    for place, one in enumerate(columns):
        orders += [
            (f"{place}:down", f"{one.name}, highest first"),
            (f"{place}:up", f"{one.name}, lowest first"),
        ]
    return [
        *([Control("f-outcome", "Final answer", outcomes)] if truth_known else []),
        *([Control("f-truth", "True class", [("", "any class"), *classes])] if truth_known else []),
        Control("f-said", "Model says", [("", "any class"), *classes]),
        *([Control("f-question", "Question wrong", asked)] if len(columns) > 1 else []),
        Control("f-sort", "Sort", orders),
    ]


def _index(rows: Sequence[Json], columns: Sequence[Column]) -> Json:
    """Return columns a question: number of the true answer or -1, of the likeliest, score of that looked for.

    `believed` is the probability of the true class, -1 where that is not known.
    """
    index: Json = {
        "id": [printable(str(row["id"])) for row in rows],
        "questions": [
            {
                "name": printable(one.name),
                "answers": [printable(answer) for answer in one.answers],
                "looked": one.answers.index(one.looked_for),
            }
            for one in columns
        ],
        "truth": [], "said": [], "score": [],
    }  # fmt: skip
    for one in columns:
        truths, probs = [truth_of(row, one) for row in rows], [probs_of(row, one) for row in rows]
        index["truth"].append([-1 if truth is None else one.answers.index(truth) for truth in truths])
        index["said"].append([_likeliest(each, one.answers) for each in probs])
        index["score"].append([float(each[one.looked_for]) for each in probs])
    final = columns[0]
    index["believed"] = [
        -1 if (truth := truth_of(row, final)) is None else float(probs_of(row, final)[truth]) for row in rows
    ]
    return index


def _likeliest(probs: Mapping[str, float], answers: Sequence[str]) -> int:
    return max(range(len(answers)), key=lambda k: probs[answers[k]])


def _record(row: Json, columns: Sequence[Column], pictures: Pictures, length: int) -> list[Any]:
    """Return [text or None, [[picture number or -1, name]], pictures in all, probabilities a question]."""
    paths = _paths(row)
    probs = [
        [float(probs_of(row, one)[answer]) for answer in one.answers] if len(one.answers) > 2 else None
        for one in columns
    ]
    text = row.get("text")
    return [
        None if text is None else cut_text(text, length),
        [_picture(path, pictures) for path in paths],
        int(row.get("picture_count", len(paths))),
        probs,
    ]


def _picture(path: Path, pictures: Pictures) -> tuple[int, str]:
    return (-1, printable(f"{path.name} (video)")) if is_video(path) else pictures.shown(path, path.name)


def _by_need(rows: Sequence[Json], believed: Sequence[float]) -> Iterator[Path]:
    """Yield pictures in the order in which they are embedded."""
    order = sorted(range(len(rows)), key=lambda i: believed[i] if believed[i] >= 0 else 2)
    albums = [[path for path in _paths(rows[i]) if not is_video(path)] for i in order]
    for place in range(max(map(len, albums), default=0)):
        yield from (album[place] for album in albums if place < len(album))


def _paths(row: Json) -> list[Path]:
    return [Path(path) for path in row.get("pictures", ())]

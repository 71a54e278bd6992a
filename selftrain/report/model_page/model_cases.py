"""The posts of an evaluation as the page's case table reads them: an index of all, and the posts in chunks.

The index holds what filters and sorting need, in columns, the final question first. Texts, pictures and the
probabilities of questions with more than two answers lie in chunks that the page parses when somebody looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from selftrain._util.printable import printable
from selftrain._util.types import Json
from selftrain.agentps.questions import FINAL
from selftrain.agentps.video import is_video
from selftrain.web.embedding import CHUNK, TEXT_BUDGET, as_json, cut, picture_chunks
from selftrain.web.pictures import BUDGET, Pictures, embed

MOST_POSTS = 50_000
"""Posts of a page; of more the first."""
LENGTHS = (1200, 500, 240, 120)
"""Characters of a text: the first number that keeps the page within `TEXT_BUDGET`."""


class Column(NamedTuple):
    """One question: what it is called and asks, its answers, and the one that scores are of."""

    name: str
    wording: str
    answers: tuple[str, ...]
    looked_for: str


class Cases(NamedTuple):
    """The case table's data.

    Attributes:
        listing: JSON of the index.
        chunks: JSON of the posts, `CHUNK` each; post i lies in chunk i // CHUNK.
        pictures: JSON of data URLs by number; the index says which chunk begins with which.
        shown, posts: How many posts are in the page, and in all.
        embedded, left_out: Pictures in the page, and those that found no room.
        cut: Characters to which texts were cut.
        truth_known: Whether the class of any shown post is known.
    """

    listing: Markup
    chunks: Sequence[Markup]
    pictures: Sequence[Markup]
    shown: int
    posts: int
    embedded: int
    left_out: int
    cut: int
    truth_known: bool


def odds_of(row: Json, column: Column) -> Mapping[str, float]:
    """Answer -> probability, as validation.jsonl has it of one post."""
    found: Mapping[str, float] = row["probabilities"] if column.name == FINAL else row["process"][column.name]
    return found


def truth_of(row: Json, column: Column) -> str | None:
    """The true answer, or None where nobody answered."""
    answer: str | None = row["truth"][column.name]
    return answer


def gather_cases(rows: Sequence[Json], columns: Sequence[Column], *, budget: int = BUDGET) -> Cases:
    """The posts in their order.

    Args:
        rows: Lines of validation.jsonl that have probabilities.
        columns: The questions, the final one first.
        budget: Characters of all pictures together; the posts that the model is most wrong about come first,
            and every post's first picture before the second of any.

    Raises:
        KeyError, ValueError: A line lacks a question, or has an answer that the question does not.
    """
    shown = rows[:MOST_POSTS]
    index = _index(shown, columns)
    pictures = embed(_by_need(shown, index["believed"]), budget=budget)
    length = _length(shown)
    posts = [_post(row, columns, pictures, length) for row in shown]
    albums = list(picture_chunks(pictures.urls))
    return Cases(
        listing=as_json(index | {"pictures": [start for start, _ in albums]}),
        chunks=[as_json(posts[start : start + CHUNK]) for start in range(0, len(posts), CHUNK)],
        pictures=[as_json(urls) for _, urls in albums],
        shown=len(shown),
        posts=len(rows),
        embedded=len(pictures.urls),
        left_out=pictures.left_out,
        cut=length,
        truth_known=any(one >= 0 for one in index["truth"][0]),
    )


def _index(rows: Sequence[Json], columns: Sequence[Column]) -> Json:
    """A column a question: number of the true answer or -1, of the likeliest, probability of that looked for.

    `believed` is the probability of the true class, -1 where that is not known.
    """
    index: Json = {
        "chunk": CHUNK,
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
        truths, odds = [truth_of(row, one) for row in rows], [odds_of(row, one) for row in rows]
        index["truth"].append([-1 if truth is None else one.answers.index(truth) for truth in truths])
        index["said"].append([_likeliest(each, one.answers) for each in odds])
        index["score"].append([float(each[one.looked_for]) for each in odds])
    final = columns[0]
    index["believed"] = [
        -1 if (truth := truth_of(row, final)) is None else float(odds_of(row, final)[truth]) for row in rows
    ]
    return index


def _likeliest(odds: Mapping[str, float], answers: Sequence[str]) -> int:
    return max(range(len(answers)), key=lambda k: odds[answers[k]])


def _post(row: Json, columns: Sequence[Column], pictures: Pictures, length: int) -> list[Any]:
    """[text or None, [[picture number or -1, name]], pictures in all, a list of probabilities a question]."""
    paths = _paths(row)
    odds = [
        [float(odds_of(row, one)[answer]) for answer in one.answers] if len(one.answers) > 2 else None
        for one in columns
    ]
    text = row.get("text")
    return [
        None if text is None else cut(text, length),
        [_picture(path, pictures) for path in paths],
        int(row.get("picture_count", len(paths))),
        odds,
    ]


def _picture(path: Path, pictures: Pictures) -> tuple[int, str]:
    return (-1, printable(f"{path.name} (video)")) if is_video(path) else pictures.shown(path, path.name)


def _by_need(rows: Sequence[Json], believed: Sequence[float]) -> Iterator[Path]:
    """The order in which pictures are embedded."""
    order = sorted(range(len(rows)), key=lambda i: believed[i] if believed[i] >= 0 else 2)
    albums = [[path for path in _paths(rows[i]) if not is_video(path)] for i in order]
    for place in range(max(map(len, albums), default=0)):
        yield from (album[place] for album in albums if place < len(album))


def _paths(row: Json) -> list[Path]:
    return [Path(path) for path in row.get("pictures", ())]


def _length(rows: Sequence[Json]) -> int:
    """The longest texts that the page has room for."""
    lengths = [len(row.get("text") or "") for row in rows]
    fitting = (most for most in LENGTHS if sum(min(n, most) for n in lengths) <= TEXT_BUDGET)
    return next(fitting, LENGTHS[-1])

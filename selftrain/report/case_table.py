"""The posts of an evaluation as the page's case table reads them: an index of all, and the posts in chunks.

In the index each column of answers holds one list a question, the final question's first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selftrain._util.printable import printable
from selftrain._util.types import Json
from selftrain.agentps.frames import is_video
from selftrain.report.model_records import Case, QuestionMetrics
from selftrain.web.pictures import BUDGET, Pictures, embed
from selftrain.web.table import MOST_RECORDS, Control, TableData, cut_text, embed_table, fitting

LENGTHS = ((1200,), (500,), (240,), (120,))
"""Characters of a text: the first number that the page has room for."""

Questions = Mapping[str, QuestionMetrics]
"""By name, the final one first."""


def gather_cases(
    cases: Sequence[Case], questions: Questions, *, truth_known: bool, budget: int = BUDGET
) -> TableData:
    """Lay out the posts in their order, with at most `budget` characters of pictures.

    Pictures of the posts that the model is most wrong about come first, and every post's first picture before
    the second of any. A case that lacks a question or an answer is a KeyError.
    """
    shown = cases[:MOST_RECORDS]
    pictures = embed(_by_need(shown), budget=budget)
    (length,) = fitting(LENGTHS, [len(case.text or "") for case in shown])
    return embed_table(
        "cases", _controls(questions, truth_known=truth_known), _index(shown, questions),
        [_record(case, questions, pictures, length) for case in shown], pictures,
        total=len(cases), cut=length,
    )  # fmt: skip


def _controls(questions: Questions, *, truth_known: bool) -> list[Control]:
    final, *process = questions
    classes = [("", "any class"), *enumerate(questions[final].answers)]
    outcomes = [("", "no matter"), ("wrong", "wrong"), ("right", "right"), ("unknown", "truth not known")]
    asked = [("", "no matter"), ("any", "any process question"), *enumerate(process, 1)]
    by_truth = [("truth:up", "by true class, forwards"), ("truth:down", "by true class, backwards")]
    by_score = [
        (f"{place}:{way}", f"{name}, {first} first")
        for place, name in enumerate(questions)
        for way, first in (("down", "highest"), ("up", "lowest"))
    ]
    orders = [
        *([("wrong:up", "most wrong first")] if truth_known else []),
        ("file:up", "as in the file"), ("id:up", "by id, forwards"), ("id:down", "by id, backwards"),
        *(by_truth if truth_known else []), *by_score,
    ]  # fmt: skip
    return [
        *([Control("f-outcome", "Final answer", outcomes)] if truth_known else []),
        *([Control("f-truth", "True class", classes)] if truth_known else []),
        Control("f-said", "Model says", classes),
        *([Control("f-question", "Question wrong", asked)] if process else []),
        Control("f-sort", "Sort", orders),
    ]


def _index(cases: Sequence[Case], questions: Questions) -> Json:
    """Return columns: for each question the place of the true answer or -1, of the given, and a score."""
    place = {name: {None: -1} | {a: k for k, a in enumerate(q.answers)} for name, q in questions.items()}
    return {
        "id": [printable(case.id) for case in cases],
        "questions": [
            {
                "name": printable(name),
                "answers": [printable(answer) for answer in q.answers],
                "looked": place[name][q.looked_for],
            }
            for name, q in questions.items()
        ],
        "truth": [[place[name][case.truth[name]] for case in cases] for name in questions],
        "said": [
            [place[name][case.given(name)] for case in cases]
            for name in questions
        ],
        "score": [[case.probs(name)[q.looked_for] for case in cases] for name, q in questions.items()],
        "believed": [case.believed for case in cases],
    }  # fmt: skip


def _record(case: Case, questions: Questions, pictures: Pictures, length: int) -> list[Any]:
    """Return [text or None, [[picture number or -1, name]], pictures in all, probabilities a question]."""
    shown = [
        (-1, printable(f"{path.name} (video)")) if is_video(path) else pictures.shown(path, path.name)
        for path in case.pictures
    ]
    probs = [
        [case.probs(name)[answer] for answer in q.answers] if len(q.answers) > 2 else None
        for name, q in questions.items()
    ]
    text = None if case.text is None else cut_text(case.text, length)
    return [text, shown, len(shown) if case.picture_count is None else case.picture_count, probs]


def _by_need(cases: Sequence[Case]) -> Iterator[Path]:
    """Yield pictures in the order in which they are embedded."""
    worst_first = sorted(cases, key=lambda case: case.believed if case.believed >= 0 else 2)
    albums = [[path for path in case.pictures if not is_video(path)] for case in worst_first]
    for place in range(max(map(len, albums), default=0)):
        yield from (album[place] for album in albums if place < len(album))

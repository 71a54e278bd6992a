"""Tasks: round trip, and what is refused with which words."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.data.task import Question, Task, TaskClass, dump_task, load_task
from selftrain.errors import TaskError

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)
counting = st.one_of(
    st.none(), st.sampled_from(["any", "most"]), st.floats(0, 1, exclude_min=True, allow_subnormal=False)
)
questions = st.builds(
    Question, words, words, st.lists(words, min_size=2, max_size=2, unique=True).map(tuple), counting
)
two = (TaskClass("spam", "unwanted"), TaskClass("ham", "wanted"))


WHOLE = "name = 'a'\npositive = 'x'\npolicy = 'p'\n[classes]\nx = 'one'\ny = 'two'\n"
QUESTION = "[[questions]]\nname = 'q'\nwording = 'w'\n"


@st.composite
def tasks(draw):
    names = draw(st.lists(words, min_size=2, max_size=4, unique=True))
    return Task(
        name=draw(words),
        classes=tuple(TaskClass(name, draw(words)) for name in names),
        positive=draw(st.sampled_from(names)),
        policy=draw(words),
        roles=draw(st.dictionaries(st.sampled_from(["reviewer", "user"]), words)),
        questions=tuple(draw(st.lists(questions, max_size=3, unique_by=lambda question: question.name))),
    )


@settings(deadline=None, max_examples=60)
@given(tasks())
def test_a_task_comes_back_from_its_file(task):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.toml"
        dump_task(task, path)
        assert load_task(path) == task


@pytest.mark.parametrize(
    ("rule", "count", "total", "answer"),
    [
        ("any", 0, 3, "no"),
        ("any", 1, 3, "yes"),
        ("most", 2, 4, "no"),
        ("most", 3, 4, "yes"),
        (0.25, 1, 4, "yes"),
        (0.25, 1, 5, "no"),
        (1, 4, 4, "yes"),
    ],
)
def test_a_count_becomes_an_answer(rule, count, total, answer):
    assert Question("faces", "Faces?", ("yes", "no"), rule).answer_for_count(count, total) == answer


def test_counts_outside_the_post_are_refused():
    question = Question("faces", "Faces?", ("yes", "no"), "any")
    with pytest.raises(ValueError, match="3 of 2"):
        question.answer_for_count(3, 2)
    with pytest.raises(ValueError, match="0 of 0"):
        question.answer_for_count(0, 0)


@pytest.mark.parametrize("rule", ["some", 0.0, 1.5, True, float("nan")])
def test_other_counting_rules_are_refused(rule):
    with pytest.raises(TaskError, match="counting rule"):
        Question("faces", "Faces?", ("yes", "no"), rule)


def test_the_loop_numbers_the_positive_class_last():
    assert Task("t", two, "spam", "p").numbered == ("ham", "spam")
    assert Task("t", two, "ham", "p").numbered == ("spam", "ham")
    assert Task("t", (*two, TaskClass("odd", "neither")), "ham", "p").numbered[-1] == "ham"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 'a'\npositive = 'x'\npolicy = 'p'\n[classes]\nx = 'one'\n", r"two or more"),
        ("name = 'a'\npositive = 'z'\npolicy = 'p'\n[classes]\nx = 'one'\ny = 'two'\n", r"`positive` is 'z'"),
        ("name = 'a'\npositive = 'x'\n[classes]\nx = 'one'\ny = 'two'\n", r"`policy` is missing"),
        (
            "name = 'a'\npositive = 'x'\npolicy = 'p'\n[classes]\nx = 'one'\ny = 2\n",
            r"meaning of class 'y' is 2",
        ),
        ("name = 'a'\npolcy = 'p'\n", r"unknown fields \['polcy'\]"),
        ("name = 'a'\nclasses = 'x'\n", r"`classes` is 'x'; expected a table"),
        ("name = \n", "not TOML"),
        (WHOLE + "[roles]\njudge = 'x'\n", r"\[roles\] has \['judge'\]; expected only"),
        (WHOLE + "[roles]\nuser = 3\n", r"description of role 'user' is 3; expected a text"),
        ("questions = 3\n" + WHOLE, "`questions` is 3; expected a list"),
        (
            WHOLE + "[[questions]]\nname = 'q'\nwording = 'w'\n",
            "`answers` of question 1 is missing; expected a list",
        ),
        (WHOLE + QUESTION + "answers = 'yes'\n", "`answers` of question 1 is 'yes'; expected a list"),
        (WHOLE + QUESTION + "answers = ['yes', 2]\n", "`answers` of question 1 is 2; expected a text"),
        (WHOLE + (QUESTION + "text = 'a'\n") * 2, r"unknown fields \['questions.text'\]; expected"),
        (WHOLE + QUESTION + "answers = ['a', 'b']\ncounting = true\n", "counting rule True"),
        ("questions = ['q']\n" + WHOLE, "question 1 is 'q'; expected a table"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, message):
    path = tmp_path / "task.toml"
    path.write_text(text)
    with pytest.raises(TaskError, match=message) as caught:
        load_task(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_a_task_error(tmp_path):
    with pytest.raises(TaskError, match="No such file"):
        load_task(tmp_path / "none.toml")


def test_a_folder_in_the_place_of_a_task_is_no_damage(tmp_path):
    with pytest.raises(TaskError, match=r"no task could be read from .*: it is a folder"):
        load_task(tmp_path)

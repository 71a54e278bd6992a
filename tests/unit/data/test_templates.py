"""The tasks that come with the package, and the command that lists and writes them."""

from __future__ import annotations

import tomllib

import pytest

from selftrain.cli import main
from selftrain.data.importers import hateful_memes
from selftrain.data.task import dump_task, load_task
from selftrain.data.templates import load_template, template_file, template_names, write_template
from selftrain.errors import TaskError


def test_there_are_three():
    assert template_names() == ("adult-content", "hateful-memes", "unoriginal-content")


@pytest.mark.parametrize("name", template_names())
def test_each_is_a_task_with_questions_that_reads_back(name, tmp_path):
    task = load_template(name)
    assert (task.name, len(task.classes)) == (name, 2)
    assert len(task.questions) >= 3
    assert all(question.wording.endswith("?") for question in task.questions)
    dump_task(task, tmp_path / "task.toml")
    assert load_task(tmp_path / "task.toml") == task
    # a table of another kind, or a field that nobody reads, would have been refused
    assert len(tomllib.loads(template_file(name).read_text())["questions"]) == len(task.questions)


def test_every_kind_of_question_occurs():
    rules = {
        name: {q.counting for q in load_template(name).questions if q.counting is not None}
        for name in template_names()
    }
    assert rules == {
        "adult-content": {"any", "most", 0.25}, "hateful-memes": set(), "unoriginal-content": {"any"},
    }  # fmt: skip
    theme = load_template("unoriginal-content").question("theme")
    assert theme is not None
    assert len(theme.answers) > 5


def test_the_importer_of_hateful_memes_answers_these_questions():
    task = load_template("hateful-memes")
    assert task == hateful_memes.TASK
    assert [question.name for question in task.questions] == list(hateful_memes.GROUPS)
    answers = hateful_memes._process({"gold_pc": ["race", "religion"]})
    assert answers == {"ethnicity_or_country": "yes", "gender_or_group": "no", "religion": "yes"}


def test_a_file_that_is_there_stays(tmp_path):
    out = tmp_path / "new" / "task.toml"
    assert write_template("adult-content", out) == load_task(out)
    assert out.read_bytes() == template_file("adult-content").read_bytes()  # comments too
    out.write_text("edited")
    with pytest.raises(TaskError, match="may have been edited"):
        write_template("adult-content", out)
    assert out.read_text() == "edited"


def test_the_command_lists_shows_and_writes(tmp_path, capsys):
    assert main(["data", "tasks"]) == 0
    shown = capsys.readouterr().out
    assert "unoriginal-content: unoriginal or original\n" in shown
    assert "  mostly_people: yes / no (counted: most)\n" in shown
    assert main(["data", "tasks", "hateful-memes"]) == 0
    assert capsys.readouterr().out == template_file("hateful-memes").read_text()
    assert main(["data", "tasks", "hateful-memes", "--out", str(tmp_path / "t.toml")]) == 0
    assert load_task(tmp_path / "t.toml") == load_template("hateful-memes")
    assert main(["data", "tasks", "memes"]) == 2
    assert "no task is called 'memes'" in capsys.readouterr().err
    assert main(["data", "tasks", "--out", str(tmp_path / "u.toml")]) == 2
    assert not (tmp_path / "u.toml").exists()

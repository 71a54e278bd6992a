"""What programs hand over that is no such thing: said in our words, before anything is computed."""

from __future__ import annotations

import json

import numpy as np
import pytest

import selftrain as st
from selftrain.errors import DataError, RecipeError, RunStateError


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("posts")
    rows = [
        {"id": f"p{i}", "text": f"text {i}", "label": ("ham", "spam")[i % 2] if i < 40 else None}
        for i in range(60)
    ]
    (folder / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return st.read_manifest(folder / "posts.jsonl", TASK)


def task():
    from selftrain.data.task import TaskClass

    classes = (TaskClass("spam", "an advertisement"), TaskClass("ham", "anything else"))
    return st.Task("mail", classes, "spam", "Is it spam?")


TASK = task()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labelled": 1}, r"data.labelled: Input should be greater than or equal to 2 \(found 1\)"),
        ({"labelled": True}, "data.labelled: it is true; expected a number"),
        ({"validation": 1.5}, r"data.validation_share: Input should be less than 1 \(found 1.5\)"),
        ({"by": "colum"}, "data.split: Input should be 'shares' or 'column'"),
        ({"seed": -1}, r"seed: Input should be greater than or equal to 0 \(found -1\)"),
        ({"seed": None}, r"seed: Input should be a valid integer \(found None\)"),
    ],
)
def test_arguments_of_split_outside_their_range(report, arguments, message):
    with pytest.raises(RecipeError, match=message):
        st.split(report, TASK, **arguments)
    assert st.split(report, TASK, labelled=np.int64(10), seed=np.int64(1)).seed == 1


def test_what_is_not_split_yet_is_said(report):
    with pytest.raises(DataError, match=r"report is a tuple: expected what `st.read_manifest` gives"):
        st.split(report.posts, TASK)
    with pytest.raises(DataError, match=r"data is a ManifestReport: expected .* by `st.split`"):
        next(st.SelfTrainer().fit(report, out="nowhere"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed: Input should be greater"),
        ({"selector": st.TopK(0)}, r"selection.k: Input should be greater than or equal to 1 \(found 0\)"),
        ({"classifier": st.HeadTrainer(dropout=1.5)}, "classifier.dropout: Input should be less than 1"),
        ({"limits": st.RoundLimits(-1)}, "rounds.max: Input should be"),
        ({"start": "worst"}, "rounds.start: 'worst' is not known: expected one of pretrained, best"),
    ],
)
def test_settings_of_a_trainer_outside_their_range(report, tmp_path, arguments, message):
    with pytest.raises(RecipeError, match=message):
        next(st.SelfTrainer(**arguments).fit(st.split(report, TASK), out=tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("panel", st.OfflinePanel), ("selector", st.TopK), ("loss", st.losses.PNULoss),
        ("classifier", st.HeadTrainer), ("backbone", st.backbones.CLIP), ("rule", st.rules.Unanimous),
    ],
)  # fmt: skip
def test_a_class_is_no_part(name, part):
    with pytest.raises(RecipeError, match=rf"{part.__qualname__} as {name} is a class: expected an object"):
        st.SelfTrainer(**{name: part})


@pytest.mark.parametrize("name", ["panel", "selector", "loss", "classifier", "backbone", "rule", "reviewers"])
def test_a_name_is_no_part_in_python(name):
    with pytest.raises(RecipeError, match=f"builtins:str as {name}: it has no "):
        st.SelfTrainer(**{name: "clip"})


def test_numbers_of_numpy_are_kept_as_arguments(report, tmp_path):
    trainer = st.SelfTrainer(selector=st.TopK(np.int64(7), {"spam": np.float32(0.25), "ham": 0.75}))
    recipe = trainer._recipe(st.split(report, TASK))
    assert (recipe.selection.k, recipe.selection.shares) == (7, {"spam": 0.25, "ham": 0.75})


def test_verdicts_of_a_round_that_is_not_there(tmp_path):
    with pytest.raises(RunStateError, match="is not a run folder"):
        st.Run(tmp_path / "nowhere").verdicts(1)


def test_any_integer_draws_posts(tmp_path):
    drawn = [st.draw_posts(tmp_path / str(seed), 2, seed).read_bytes() for seed in (3, np.int64(3))]
    assert drawn[0] == drawn[1]


def test_an_empty_part_is_a_part(report):
    class Chooses(list):
        def select(self, chunks, *, most, classes, seed):
            raise AssertionError

    assert isinstance(st.SelfTrainer(selector=Chooses())._parts.selector, Chooses)

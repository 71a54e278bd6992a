"""The posts of a run are found again as the run has read them."""

import json

import pytest

from selftrain.data.run_posts import find_posts
from selftrain.store.run_dir import PostDigest, RunFolder, text_digest


@pytest.fixture
def found(tmp_path):
    """What is found of a manifest's rows: id -> (text, label)."""

    def find(rows, wanted, columns=None):
        manifest = tmp_path / "posts.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir()
        named = "".join(f'{field} = "{column}"\n' for field, column in (columns or {}).items())
        files = f'[data]\nmanifest = "{manifest}"\ntask = "{tmp_path / "task.toml"}"\n'
        folder.recipe_path.write_text(f"{files}[data.columns]\n{named}")
        environment = {"identity": {"task": "spam"}, "classes": {"all": ["spam", "fine"]}}
        (folder.path / "environment.json").write_text(json.dumps(environment))
        return {post_id: (one.text, one.label) for post_id, one in find_posts(folder, wanted).items()}

    return find


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({}, {"ID": "a1", "Text": "a loan", "Label": "spam"}),
        ({"id": "tweet", "text": "said"}, {"tweet": "a1", "said": "a loan", "label": "spam"}),
        ({"id": "meta.id"}, {"meta": {"id": "a1"}, "text": "a loan", "label": "spam"}),
    ],
)
def test_by_the_columns_that_the_run_has_read(found, columns, row):
    assert found([row], ["a1"], columns) == {"a1": ("a loan", "spam")}


def test_ids_are_as_they_are_written(found):
    rows = [{"id": " 7", "text": "one"}, {"id": "7", "text": "two"}, {"id": 8.0, "text": "three"}]
    told = {" 7": ("one", None), "7": ("two", None), "8.0": ("three", None)}
    assert found(rows, [*told]) == told


def test_a_truth_is_a_class_of_the_run_however_it_is_spelled(found):
    rows = [{"id": "a", "text": "x", "label": "Spam "}, {"id": "b", "text": "y", "label": ["fine"]}]
    rows += [{"id": "c", "text": "z", "label": "other"}]
    assert [label for _, label in found(rows, "abc").values()] == ["spam", "fine", None]


def test_a_row_that_is_bad_by_now_keeps_its_words(found):
    rows = [{"ID": "a", "TEXT": "x", "Label": "Fine", "images": ["gone.png"]}]
    assert found(rows, ["a"]) == {"a": ("x", "fine")}


def test_a_row_of_another_text_is_not_what_it_was(tmp_path):
    rows = [{"id": one, "text": f"about {one}", "label": "fine"} for one in "abc"]
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = RunFolder(tmp_path / "run")
    recipe = {"data": {"manifest": str(tmp_path / "posts.jsonl"), "task": "task.toml"}}
    environment = {"identity": {"task": "spam"}, "classes": {"all": ["spam", "fine"]}}
    before = {"a": ("about a", None), "b": ("about b", "fine"), "c": ("before", None)}
    with folder.locked():
        folder.begin(recipe, environment, [PostDigest(i, "pool", text_digest(*b)) for i, b in before.items()])
    told = {post_id: one.reason for post_id, one in find_posts(folder, "abc").items()}
    assert told == {"a": "", "b": "", "c": "its text is not what it was when this began"}

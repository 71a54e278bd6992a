"""`data check` and `data import` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from selftrain.cli import main
from selftrain.data.drawn import draw_posts


def run(*words):
    return main(["data", *map(str, words)])


@pytest.fixture
def manifest(tmp_path):
    return draw_posts(tmp_path / "drawn", 20)


def test_a_sound_manifest_is_counted(manifest, capsys):
    assert run("check", manifest, "--task", manifest.parent / "task.toml", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["posts"], told["problems"]) == (20, 20, [])
    assert told["labels"] == {"advertisement": 10, "invitation": 10}
    assert sum(told["makes"][make] for make in ("text only", "images only", "text and images")) == 20


def test_a_bad_row_gives_1_with_line_id_reason_and_remedy(manifest, capsys):
    lines = manifest.read_text().splitlines()
    copy = json.loads(lines[0]) | {"id": "copy"}
    bad = {"id": "evil\x1b[31m", "text": "x", "label": "\x1b]0;eggs"}
    manifest.write_text("\n".join([*lines, json.dumps(copy), json.dumps(bad)]))
    assert run("check", manifest, "--task", manifest.parent / "task.toml") == 1
    out = capsys.readouterr().out
    assert "22 rows, 21 posts, 1 set aside" in out
    assert "line 22" in out
    assert "is none of ['advertisement', 'invitation']; write a class name" in out
    assert f"{json.loads(lines[0])['id']}, copy" in out
    assert "\x1b" not in out
    assert run("check", manifest, "--task", manifest.parent / "task.toml", "--no-duplicates", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["duplicates"] == []
    assert told["problems"][0]["line"] == 22
    assert told["problems"][0]["post_id"] == bad["id"]


def test_a_task_that_is_none_is_an_error(manifest, capsys):
    assert run("check", manifest, "--task", manifest) == 2
    assert capsys.readouterr().err.startswith(f"error: {manifest}")


def test_import_says_what_was_left_out(tmp_path, capsys):
    (tmp_path / "labeled_data.csv").write_text(",count,class,tweet\n0,3,2,hello\n1,3,5,odd\n")
    assert run("import", "hsol", tmp_path, "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "1 posts in" in out
    assert "1 rows left out:\n  line 3, id '1': class '5' is none of 0, 1, 2" in out
    assert run("check", tmp_path / "out" / "manifest.jsonl", "--task", tmp_path / "out" / "task.toml") == 0


def test_nothing_heavy_is_imported():
    code = (
        "import sys, selftrain.cli.data, selftrain.data.duplicates, selftrain.data.drawn, "
        "selftrain.data.importers,"
        " selftrain.data.manifest, selftrain.data.splits, selftrain.data.task\n"
        "print([name for name in ('torch', 'transformers', 'pyarrow', 'PIL', 'imagehash') if name "
        "in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

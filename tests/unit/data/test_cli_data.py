"""`data check` and `data import` on the command line."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys

import pytest
from PIL import Image

from backbones.errors import ImageError
from backbones.images import open_image
from selftrain.cli import main
from selftrain.data import matching
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


def half(form):
    """A picture of which the second half is missing: its header is sound."""
    file = io.BytesIO()
    Image.effect_noise((60, 50), 90).save(file, form)
    return file.getvalue()[: len(file.getvalue()) // 2]


def changed(place):
    """A PNG with one byte changed."""
    file = io.BytesIO()
    Image.effect_noise((60, 50), 90).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[place] ^= 0x3C
    return bytes(content)


BROKEN = {
    "half.jpg": half("JPEG"),
    "half.png": half("PNG"),
    "half.bmp": half("BMP"),
    "data.png": changed(900),
}


@pytest.mark.parametrize("options", [(), ("--no-duplicates",), ("--workers", "2")], ids=" ".join)
def test_a_picture_that_cannot_be_decoded_makes_its_rows_bad(tmp_path, monkeypatch, capsys, caplog, options):
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (60, 50), "olive").save(tmp_path / "good.png")
    rows = [{"id": "first", "text": "words", "label": "?"}, {"id": "good", "images": ["good.png"]}]
    for name, content in BROKEN.items():
        (tmp_path / name).write_bytes(content)
        rows.append({"id": name, "text": "words", "images": ["good.png", name]})
        rows.append({"id": f"inside {name}", "images": [base64.b64encode(content).decode()]})
    rows.append({"id": "again", "images": ["half.png"]})
    manifest = tmp_path / "posts.jsonl"
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    opened = []
    monkeypatch.setattr(matching, "open_image", lambda path, **limits: _noted(opened, path, limits))
    assert run("check", manifest, "--json", *options) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["posts"]) == (len(rows), 2)
    assert [(one["line"], one["post_id"]) for one in told["problems"]] == [
        (line, row["id"]) for line, row in enumerate(rows, 1) if line > 2
    ]
    assert len(opened) == len(set(opened)) == 1 + 2 * len(BROKEN), "each is decoded once"
    assert not caplog.records
    # in the words that whoever encodes the posts has for it
    for place, name in enumerate(BROKEN):
        with pytest.raises(ImageError) as refused:
            open_image(tmp_path / name, target_size=224)
        fault = str(refused.value).removeprefix(f"{tmp_path / name}: ").rstrip(".")
        assert told["problems"][2 * place]["reason"] == f"image {name!r}: {fault}"
        assert told["problems"][2 * place + 1]["reason"] == f"image in the table: {fault}"


def _noted(opened, path, limits):
    opened.append(path)
    return open_image(path, **limits)


def test_set_aside_rows_are_counted_in_words_and_stand_in_the_order_of_their_lines(tmp_path, capsys):
    (tmp_path / "cut.jpg").write_bytes(half("JPEG"))
    rows = [{"id": "a", "images": ["cut.jpg"]}, {"id": "b"}, {"id": "c", "text": "words"}]
    (tmp_path / "posts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert run("check", tmp_path / "posts.jsonl", "--no-duplicates") == 1
    out = capsys.readouterr().out
    assert "3 rows, 1 posts, 2 set aside" in out
    assert out.index("line 1, id 'a': image 'cut.jpg': cannot be decoded") < out.index("line 2, id 'b'")


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

"""Tables, tasks and recipes that say another thing than they seem to, given to the functions that read them.

They are read, refused or set aside in words; none costs more than it looks.
"""

from __future__ import annotations

import io
import json
import os
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selftrain.config import load_recipe
from selftrain.data.manifest import read_manifest
from selftrain.data.tables import open_table
from selftrain.data.task import load_task
from selftrain.errors import SelftrainError

TABLES = pytest.mark.attack("files: tables")
SETTINGS = pytest.mark.attack("files: tasks and recipes")
TASK = '[task]\nname = "t"\n'


def parquet(table, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def repeated(groups=1):
    """A text of 10 kB in each of 40,000 rows: a few kilobytes, since a dictionary holds it once."""
    one = pa.table({"id": [str(n) for n in range(40_000)], "text": ["x" * 10_000] * 40_000})
    file = io.BytesIO()
    with pq.ParquetWriter(file, one.schema, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(one)
    return file.getvalue()


def listed():
    texts = [["x" * 1000] * 200] * 1000
    return parquet(pa.table({"id": [str(n) for n in range(1000)], "text": texts}), compression="zstd")


def nested():
    texts = [{"a": {"b": "x" * 10_000}}] * 20_000
    return parquet(pa.table({"id": [str(n) for n in range(20_000)], "text": texts}), compression="zstd")


BOMBS = {"a text again and again": repeated, "texts in lists": listed, "texts in objects": nested}


@TABLES
@pytest.mark.parametrize("name", BOMBS)
def test_a_parquet_bomb_is_refused_before_its_first_row(name, tmp_path):
    (tmp_path / "posts.parquet").write_bytes(BOMBS[name]())
    table = open_table(tmp_path / "posts.parquet")
    with pytest.raises(SelftrainError, match="unpacks to more"):
        next(table.rows)


def footer(size):
    whole = parquet(pa.table({"id": ["a"], "text": ["b"]}))
    return whole[:-8] + struct.pack("<I", size) + b"PAR1"


ROWS = {
    "footer longer than the file": ("p.parquet", lambda: footer(2**31 - 1)),
    "footer of nothing": ("p.parquet", lambda: footer(0)),
    "a column name of a megabyte": ("p.csv", lambda: b"id,text," + b"n" * 1_000_000 + b"\n1,a,b\n"),
    "a column name of escapes": ("p.csv", lambda: b"id,text,\x1b]0;x\x07\n1,a,b\n"),
    "one key ten thousand times": (
        "p.jsonl",
        lambda: b'{"id": "a", ' + b'"text": "b", ' * 9999 + b'"x": 1}\n',
    ),
    "prototype keys": ("p.jsonl", lambda: b'{"id": "a", "text": "b", "__class__": {"__init__": 1}}\n'),
    "an id of line ends": ("p.jsonl", lambda: b'{"id": "a\\nb\\r\\u2028c", "text": "b"}\n'),
    "an id that is a path": ("p.jsonl", lambda: b'{"id": "../../../etc/passwd", "text": "b"}\n'),
    "an image that is a link out": ("p.jsonl", lambda: b'{"id": "a", "text": "b", "images": ["out"]}\n'),
    "an image with NUL": ("p.jsonl", lambda: b'{"id": "a", "text": "b", "images": ["a\\u0000.png"]}\n'),
    "an image name too long": ("p.jsonl", lambda: json.dumps({"id": "a", "images": ["n" * 5000]}).encode()),
    "an image that is a folder": ("p.jsonl", lambda: b'{"id": "a", "images": ["."]}\n'),
    "an image that is a FIFO": ("p.jsonl", lambda: b'{"id": "a", "images": ["fifo"]}\n'),
    "an image that is a ring of links": ("p.jsonl", lambda: b'{"id": "a", "images": ["ring"]}\n'),
    "a gzip cut short": ("p.csv.gz", lambda: b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x4b"),
    "bzip2 of nothing": ("p.csv.bz2", lambda: b"BZh9\x17\x72\x45\x38\x50\x90\0\0\0\0"),
    "xz, a huge dictionary": (
        "p.csv.xz",
        lambda: b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4F\x02\0!\x01\x28" + bytes(40),
    ),
    "two byte order marks": ("p.csv", lambda: b"\xef\xbb\xbf\xef\xbb\xbfid,text\n1,a\n"),
    "UTF-16 cut in a character": ("p.csv", lambda: "id,text\n1,a\n".encode("utf-16")[:-1]),
    "a date past all dates": (
        "p.parquet",
        lambda: parquet(pa.table({"id": ["a"], "text": ["b"], "at": pa.array([2**62], pa.timestamp("us"))})),
    ),
}


@TABLES
@pytest.mark.parametrize("name", ROWS)
def test_whatever_a_table_holds_it_is_read_set_aside_or_refused(name, tmp_path):
    (tmp_path / "out").symlink_to("/etc/passwd")
    (tmp_path / "ring").symlink_to("ring")
    os.mkfifo(tmp_path / "fifo")
    file, made = ROWS[name]
    (tmp_path / file).write_bytes(made())
    found, refused = None, ""
    try:
        found = read_manifest(tmp_path / file)
    except SelftrainError as error:
        refused = str(error)
    if found is None:
        assert file in refused
        assert len(refused) < 5000
        return
    assert found.rows == 1
    for post in found.posts:
        assert all(image.resolve().is_relative_to(tmp_path) and image.is_file() for image in post.images)


TEXTS = {
    "ten thousand classes": lambda: TASK + "classes = [" + ",".join(f'"c{n}"' for n in range(10_000)) + "]\n",
    "a class of a megabyte": lambda: TASK + f'classes = ["{"c" * 1_000_000}", "b"]\n',
    "classes that look alike": lambda: TASK + 'classes = ["a", "\\u0430"]\npositive = "a"\n',
    "classes of escapes": lambda: TASK + 'classes = ["a\\u001b[2J", "b"]\n',
    "a number of a megabyte": lambda: "seed = " + "9" * 1_000_000 + "\n",
    "a hundred thousand tables": lambda: "".join(f"[a{n}]\n" for n in range(100_000)),
    "a hundred thousand dots": lambda: "a" + ".a" * 100_000 + " = 1\n",
    "strings not closed": lambda: 'a = """' + "x\n" * 300_000,
    "a key of a megabyte": lambda: f"{'k' * 1_000_000} = 1\n",
    "a hundred thousand questions": lambda: TASK + "[[questions]]\n" * 100_000,
    "infinity": lambda: "seed = inf\n[rounds]\nmax = nan\n",
    "a date": lambda: "seed = 1979-05-27T07:32:00Z\n",
}


@SETTINGS
@pytest.mark.parametrize("read", [load_recipe, load_task], ids=("recipe", "task"))
@pytest.mark.parametrize("name", TEXTS)
def test_whatever_a_recipe_or_a_task_says_it_is_refused_in_words(name, read, tmp_path):
    (tmp_path / "it.toml").write_text(TEXTS[name]())
    with pytest.raises(SelftrainError) as refused:
        read(tmp_path / "it.toml")
    assert "it.toml" in str(refused.value)
    assert len(str(refused.value)) < 5000

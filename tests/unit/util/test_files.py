"""Files are judged before they are read."""

from __future__ import annotations

import os

import pytest

from selftrain._util.files import read_json


def test_a_value_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"ä": [1, null]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"ä": [1, None]}


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "Expecting"), (b"[" * 200_000, "too deep"), (b"\xff\xfe{\0}\0", "utf-8")],
    ids=["cut", "deep", "UTF-16"],
)
def test_what_is_no_json_is_one_kind_of_error(tmp_path, content, words):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_json(tmp_path / "a.json")


def test_a_fifo_is_not_opened_and_nothing_is_told_from_something(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="a FIFO, expected a regular file"):
        read_json(tmp_path / "fifo")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")

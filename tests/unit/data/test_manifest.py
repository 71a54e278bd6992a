"""Manifests: hostile rows are set aside one by one, and a failed write leaves the old file."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from selftrain.data.manifest import Tolerance, describe, read_manifest
from selftrain.data.manifest_writing import write_manifest
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task, TaskClass
from selftrain.errors import ManifestError, QuarantineError

TASK = Task(
    "t",
    (TaskClass("spam", "unwanted"), TaskClass("ham", "wanted")),
    "spam",
    "p",
    questions=(
        Question("link", "A link?", ("yes", "no")),
        Question("faces", "Faces?", ("yes", "no"), "most"),
    ),
)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "set"
    place.mkdir()
    for name in ("a.png", "b.png", "odd;name.png"):
        Image.new("RGB", (8, 8), "red").save(place / name)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "outside.png")
    (place / "link.png").symlink_to(tmp_path / "outside.png")
    (place / "inner.png").symlink_to("a.png")
    (place / "words.png").write_text("no image at all")
    return place


def _lines(folder, *rows, task=TASK, **options):
    path = folder / "posts.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return read_manifest(path, task, **options)


HOSTILE = {
    "no id": {"text": "x"},
    "id '' is": {"id": " ", "text": "x"},
    "id True": {"id": True, "text": "x"},
    "neither text nor image": {"id": "r", "text": "  "},
    "label 'eggs' is none of": {"id": "r", "text": "x", "label": "eggs"},
    "label 1 is none of": {"id": "r", "text": "x", "label": 1},
    "text 7.5 is a float": {"id": "r", "text": 7.5},
    "text holds a NUL": {"id": "r", "text": "a\0b"},
    "process question 'size' is none": {"id": "r", "text": "x", "process": {"size": "big"}},
    "answer 'maybe' to 'link'": {"id": "r", "text": "x", "process": {"link": "maybe"}},
    "process 'yes' is not JSON": {"id": "r", "text": "x", "process": "yes"},
    "process [] is no table": {"id": "r", "text": "x", "process": []},
    "3 for the counting question": {"id": "r", "text": "x", "images": ["a.png"], "process": {"faces": 3}},
    "absolute path": {"id": "r", "images": ["/etc/hostname"]},
    "'C:/a.png' is an absolute path": {"id": "r", "images": ["C:/a.png"]},
    "'../outside.png' leads out": {"id": "r", "images": ["../outside.png"]},
    "'link.png' leads out": {"id": "r", "images": ["link.png"]},
    "'https://example.org/a.png' is a URL": {"id": "r", "images": ["https://example.org/a.png"]},
    "'//example.org/a.png' is a URL": {"id": "r", "images": ["//example.org/a.png"]},
    "'words.png'": {"id": "r", "images": ["words.png"]},
    "'none.png'": {"id": "r", "images": ["none.png"]},
    "no path": {"id": "r", "images": ["a\0.png"]},
    "17 images": {"id": "r", "images": ["a.png"] * 17},
    "no list of paths": {"id": "r", "images": [3]},
    "not JSON": b'{"id": "r", ',
    "expected an object": b'["r"]',
    "not UTF-8: byte 0xff": b'{"id": "r", "text": "\xff"}',
    "half a surrogate": b'{"id": "r", "text": "\\ud83d"}',
}


@pytest.mark.parametrize(("reason", "row"), HOSTILE.items())
def test_a_bad_row_is_set_aside_and_the_others_stay(folder, reason, row):
    if reason == "id '' is":
        reason = "id ' ' is"
    report = _lines(folder, {"id": "first", "text": "x"}, row, {"id": "last", "text": "x"})
    assert [post.id for post in report.posts] == ["first", "last"]
    (problem,) = report.problems
    assert problem.line == 2
    assert reason in problem.reason
    assert problem.remedy
    assert report.rows == 3


def test_every_later_row_of_an_id_is_set_aside_and_names_the_first(folder):
    report = _lines(folder, *({"id": name, "text": "x"} for name in "abaca"))
    assert [post.id for post in report.posts] == ["a", "b", "c"]
    assert [(problem.line, problem.post_id) for problem in report.problems] == [(3, "a"), (5, "a")]
    assert all("line 1" in problem.reason for problem in report.problems)


def test_a_good_row_is_read_whole(folder):
    row = {
        "id": 7,
        "images": ["a.png", "inner.png", "b.png"],
        "label": "ham",
        "process": {"faces": 2, "link": "no"},
    }
    report = _lines(folder, row | {"source": {"page": 3}})
    assert not report.problems
    (post,) = report.posts
    assert post == Post(
        "7",
        "",
        tuple((folder / name).resolve() for name in ("a.png", "a.png", "b.png")),
        "ham",
        {"faces": "yes", "link": "no"},
        {"source": {"page": 3}},
    )


@pytest.mark.parametrize("first", ["fold", "split"])
def test_a_column_that_another_was_given_for_is_left_out_and_told(folder, first):
    row = {"id": "a", first: "", "text": "old", "new": "new", "split": "train", "fold": "test"}
    row |= {"process.link": "no", "linked": "yes"}
    given = {"text": "new", "split": "fold", "process.link": "linked"}
    report = _lines(folder, row, columns=given)
    assert [(post.text, post.process, post.extra) for post in report.posts] == [
        ("new", {"link": "yes"}, {"split": "test"})
    ]
    told = [note.reason for note in report.notes]
    for field, column in given.items():
        assert f"column {field!r} is left out: {column!r} is read as {field}" in told
    assert not any(note.startswith("kept, but not read") for note in told)


def test_two_answers_to_one_question_are_none(folder):
    rows = [
        {"id": name, "text": "x", "process": {"link": first}, "process.link": second}
        for name, first, second in (
            ("a", "yes", "no"),
            ("b", "yes", "yes"),
            ("c", "yes", ""),
            ("d", None, "no"),
        )
    ]
    report = _lines(folder, *rows)
    assert {post.id: post.process["link"] for post in report.posts} == {"b": "yes", "c": "yes", "d": "no"}
    (problem,) = report.problems
    assert problem.reason == "process answers 'link' by 'yes', and process.link by 'no'"


def test_a_column_is_of_one_field(folder):
    with pytest.raises(ManifestError, match="label=x and text=x: expected a column for each field"):
        _lines(folder, {"id": "a", "x": "spam"}, columns={"label": "x", "text": "x"})


def test_nan_is_an_absent_value_in_every_format(folder):
    report = _lines(folder, b'{"id": "r", "text": "x", "score": NaN}')
    assert (report.posts[0].extra, report.problems) == ({}, ())
    assert "NaN in column 'score' is read as no value" in str(report.notes)


def test_too_large_a_header_and_a_missing_text(folder):
    assert "images" not in _lines(folder, {"id": "r", "text": "x"}, max_pixels=63).posts[0].extra
    assert _lines(folder, {"id": "r", "images": ["a.png"]}, max_pixels=63).problems
    assert not _lines(folder, {"id": "r", "images": ["a.png"]}, max_pixels=64).problems
    assert (
        _lines(folder, {"id": "r", "images": ["a.png"]}, allow_missing_text=False).problems[0].reason
        == "no text"
    )


def test_a_byte_order_mark_is_tolerated(folder):
    assert [post.id for post in _lines(folder, b'\xef\xbb\xbf{"id": "r", "text": "x"}').posts] == ["r"]
    path = folder / "posts.csv"
    path.write_bytes(b"\xef\xbb\xbfid,text\r\nr,x\r\n")
    assert [post.id for post in read_manifest(path).posts] == ["r"]


def _csv(folder, text):
    path = folder / "posts.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return read_manifest(path, TASK)


def test_csv_lists_and_answers(folder):
    report = _csv(
        folder,
        "id,text,images,process,process.link,note\nr,x,a.png; b.png,,yes,n\n"
        's,x,"[""odd;name.png""]","{""link"": ""no""}",,\n',
    )
    assert not report.problems
    first, second = report.posts
    assert [path.name for path in first.images] == ["a.png", "b.png"]
    assert (first.process, first.extra) == ({"link": "yes"}, {"note": "n"})
    assert [path.name for path in second.images] == ["odd;name.png"]
    assert (second.process, second.extra) == ({"link": "no"}, {})


@pytest.mark.parametrize(
    ("rows", "line", "reason"),
    [
        ("r,x,more\n", 3, "3 cells, the header has 2"),
        ("r,\udcff\n", 3, "not UTF-8"),
        ('r,"two\nlines",more\n', 3, "3 cells"),
        ("r,a\0b\n", 3, "NUL"),
        ('r,"x"y\n', 3, "not CSV: "),
    ],
)
def test_a_bad_csv_row_names_its_first_line(folder, rows, line, reason):
    report = _csv(folder, "id,text\nfirst,x\n" + rows + "last,x\n")
    assert [post.id for post in report.posts] == ["first", "last"]
    assert [problem.line for problem in report.problems] == [line]
    assert reason in report.problems[0].reason


def test_a_quote_that_is_never_closed_stops_the_reading(folder):
    with pytest.raises(ManifestError, match=r"line 3 opens is not closed .*lines 3 to 4"):
        _csv(folder, 'id,text\nfirst,x\nr,"open\nlast,x\n')


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("posts.csv", b"r,x\n", "expected a header with 'id'"),
        ("posts.csv", b"id,text,text\n", "more than once"),
        ("posts.csv", b"id,te\xffxt\n", "readable names"),
        ("posts.csv", b"", "is empty; expected a line of column names"),
        ("posts.tsv", b"\n\n", "is empty; expected a line of column names"),
        ("posts.parquet", b"PAR1", "not a Parquet file"),
        ("posts.xlsx", b"PK\x03\x04", "Excel workbook"),
    ],
)
def test_a_file_that_cannot_be_read_at_all(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        read_manifest(path)


def test_a_missing_file_and_an_empty_one(tmp_path):
    with pytest.raises(ManifestError, match="No such file"):
        read_manifest(tmp_path / "none.jsonl")
    path = tmp_path / "empty.jsonl"
    path.touch()
    report = read_manifest(path)
    assert [*describe(report.problems)] == ["  the file holds no rows; write at least one post into it"]
    for tolerance in (Tolerance(), Tolerance(None, None)):  # of no rows none can be tolerated
        with pytest.raises(
            ManifestError, match=r"empty\.jsonl holds no rows: write at least one post into it$"
        ):
            report.enforce(tolerance)


def test_parquet_of_others(tmp_path):
    table = pa.table(
        {
            "id": pa.array([3, 4]),
            "text": ["x", "y"],
            "process": pa.array([{"link": "yes", "faces": None}, None]),
            "score": [float("nan"), 0.5],
        }
    )
    pq.write_table(table, tmp_path / "posts.parquet")
    first, second = read_manifest(tmp_path / "posts.parquet", TASK).posts
    assert (first.id, first.process, first.extra) == ("3", {"link": "yes"}, {})
    assert (second.id, second.process, second.extra) == ("4", {}, {"score": 0.5})


def test_damage_of_a_parquet_file_is_told_in_a_line(folder):
    path = folder / "posts.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["x"]}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + b"\xff" * 20 + whole[60:])
    with pytest.raises(ManifestError, match=r"is damaged after row 0: [^\n]+; write it again$"):
        read_manifest(path)


def test_enforcing_counts_and_shares(folder):
    report = _lines(folder, {"id": "a", "text": "x"}, {"id": "b"}, {"id": "c"}, {"id": "d", "text": "x"})
    report.enforce(Tolerance(2, None))
    report.enforce(Tolerance(None, 0.5))
    with pytest.raises(
        QuarantineError, match=r"2 of 4 rows \(50.00%\).*(?s:.*)line 2, id 'b': neither text"
    ) as caught:
        report.enforce(Tolerance(1, None))
    assert "line 3, id 'c'" in str(caught.value)
    with pytest.raises(QuarantineError, match="49"):
        report.enforce(Tolerance(None, 0.49))


def test_a_long_list_of_problems_is_cut_and_counted(folder):
    report = _lines(folder, *({"id": str(number)} for number in range(14)))
    with pytest.raises(QuarantineError, match="and 4 more"):
        report.enforce(Tolerance(0, None))


def test_what_cannot_be_written_leaves_the_old_file(folder):
    path = folder / "posts.jsonl"
    path.write_text("old")
    for bad in (
        [Post("a", "x"), Post("a", "y")],
        [Post("a", "x", (folder.parent / "outside.png",))],
        [Post("a", "x", extra={"label": "y"})],
        [Post("a", "x", extra={"score": float("inf")})],
        [Post("a", "half a pair \ud83d")],
    ):
        with pytest.raises(ManifestError):
            write_manifest(bad, path)
    assert path.read_text() == "old"
    assert not list(folder.glob(".posts*"))


def test_real_memes_are_read_and_a_broken_one_is_named(data_root):
    report = read_manifest(data_root / "harmeme" / "val.jsonl")
    assert (len(report.posts), report.problems) == (177, ())
    assert report.counts == {"harmful": 61, "harmless": 116}
    assert all(path.is_file() for post in report.posts for path in post.images)

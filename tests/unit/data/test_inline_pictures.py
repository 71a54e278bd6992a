"""Pictures that stand in the table itself: what is read as one, and what is said of the others."""

from __future__ import annotations

import base64
import io
import json
from urllib.parse import quote

import pytest
from PIL import Image

from selftrain.data.inline_pictures import read_picture
from selftrain.data.manifest import read_manifest
from selftrain.data.tables import open_table
from selftrain.errors import ManifestError
from selftrain.serving.wire import RequestLimits, parse

SIZE = (11, 7)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path / "cache"))


def painted(form, mode="RGB", colour="teal", **options):
    file = io.BytesIO()
    Image.new(mode, SIZE, colour).save(file, form, **options)
    return file.getvalue()


def encoded(content):
    return base64.b64encode(content).decode()


def read(folder, *images):
    path = folder / "posts.jsonl"
    path.write_text("".join(f"{json.dumps({'id': str(n), 'images': one})}\n" for n, one in enumerate(images)))
    return read_manifest(path)


PICTURES = {
    "png": painted("PNG"),
    "jpeg": painted("JPEG"),
    "gif": painted("GIF"),
    "webp": painted("WEBP"),
    "bmp": painted("BMP"),
    "bmp of 8 bits": painted("BMP", "L", 77),
    "bmp of 1 bit": painted("BMP", "1", 1),
    "dark bmp, which is UTF-8": painted("BMP", colour="black"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_each_format_is_read_in_each_way_of_writing_it_down(tmp_path, name):
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = PICTURES[name]
    uri = f"data:image/{name[:4].strip()};base64,{encoded(content)}"
    written = [
        encoded(content), [encoded(content)], base64.encodebytes(content).decode(), uri, [uri, uri],
        base64.urlsafe_b64encode(content).decode(), {"bytes": encoded(content), "path": None},
    ]  # fmt: skip
    report = read(tmp_path, *written)
    assert not report.problems
    assert {path.read_bytes() for post in report.posts for path in post.images} == {content}
    for place, images in enumerate(([content], [{"bytes": content, "path": "a"}], [[content]])):
        file = tmp_path / f"{place}.parquet"
        pq.write_table(pa.table({"id": ["x"], "image": images}), file)
        (post,) = read_manifest(file).posts
        assert [path.read_bytes() for path in post.images] == [content]


def test_what_only_begins_like_a_bitmap_is_a_path_a_text_or_a_table(tmp_path):
    for name in ("Qk" + "a" * 60, "Qk0" + "A" * 61, "QkFL" * 12):
        Image.new("RGB", SIZE).save(tmp_path / name, "PNG")
        (post,) = read(tmp_path, name).posts
        assert post.images == (tmp_path / name,)
    cars = tmp_path / "cars.csv"
    cars.write_text("BM,id,text\nBMW,1,BMW builds cars\n")
    assert [row.fields["text"] for row in open_table(cars).rows] == ["BMW builds cars"]
    (tmp_path / "posts.csv").write_bytes(PICTURES["bmp"])
    with pytest.raises(ManifestError, match="is a picture"):
        open_table(tmp_path / "posts.csv")


def test_a_bitmap_that_is_cut_is_told_as_a_picture(tmp_path):
    cut = encoded(PICTURES["bmp"])
    (problem,) = read(tmp_path, cut[:-30][: len(cut) // 2 // 4 * 4 + 1]).problems
    assert "is not base64, or not all of it" in problem.reason


PNG = PICTURES["png"]
URIS = (
    "DATA:IMAGE/PNG;BASE64," + encoded(PNG),
    "data:image/png;charset=utf-8;base64," + encoded(PNG),
    'data:image/png;name="a.png"; base64,' + encoded(PNG),
    "data:;base64," + encoded(PNG),
    "data:application/octet-stream;base64," + encoded(PNG),
    "data:image/png;base64," + quote(encoded(PNG), safe=""),
    "data:image/png," + quote(PNG),
    "  data:image/png;base64," + encoded(PNG),
)


@pytest.mark.parametrize("uri", URIS)
def test_a_data_uri_is_read_by_its_rules_in_a_table_and_in_a_request(tmp_path, uri):
    report = read(tmp_path, uri, [uri])
    assert [path.read_bytes() for post in report.posts for path in post.images] == [PNG, PNG]
    body = json.dumps({"id": "a", "images": [uri]}).encode()
    assert parse(body, RequestLimits())[0].images == (PNG,)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("data:image/png;base64," + encoded(PNG)[:-3], "not base64, or not all of it"),
        ("data:image/png;base64,", "nothing in it"),
        ("Data:", "without a comma"),
        ("data:image/gif;base64", "without a comma"),
        ("data:text/html,<p>no</p>", "of 'text/html' that holds no picture"),
        ("DATA:IMAGE/PNG;BASE64,****", "not base64"),
        ("data:,hello", "of 'text/plain' that holds no picture"),
    ],
)
def test_what_is_wrong_with_a_data_uri_is_said(tmp_path, uri, told):
    alone, listed = read(tmp_path, uri, [uri]).problems
    assert told in alone.reason
    assert told in listed.reason
    assert "URL" not in alone.reason + listed.reason
    assert not (tmp_path / "cache").exists(), "nothing of it is kept"


def test_bytes_that_are_no_picture_are_told_as_that(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["x"], "image": [{"bytes": b"II*\0" * 9}]}), tmp_path / "t.parquet")
    (problem,) = read_manifest(tmp_path / "t.parquet").problems
    assert "36 bytes that begin like no picture that is read" in problem.reason


def test_the_note_counts_rows_not_pictures(tmp_path):
    uri = "data:image/png;base64," + encoded(PNG)
    report = read(tmp_path, *[[uri, uri]] * 3, [])
    (note,) = (one for one in report.notes if "stand in the table" in one.reason)
    assert (note.rows, note.line) == (3, 1)


def test_a_path_is_no_picture():
    for path in ("pictures/a.png", "", "data/a.png", "R0lGODlh.gif", "/9j/" + "a" * 50 + ".png", "=" * 60):
        assert read_picture(path) is None

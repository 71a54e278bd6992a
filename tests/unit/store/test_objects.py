"""Manifests on object storage: a copy is the object or is not there; pictures come with their rows."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_storage import BUCKET, emptied_bucket
from PIL import Image

from selftrain._util.object_urls import is_url, local_path, name_urls, url_of, url_or_path
from selftrain.data.manifest import read_manifest
from selftrain.data.tables import open_table
from selftrain.errors import ManifestError, StorageError
from selftrain.store import objects

pytest.importorskip("boto3", reason="needs the development tools: pip install .[dev]")
ROWS = [{"id": f"p{i}", "text": f"text {i}", "label": "yes"} for i in range(50)] + [
    {"id": "p1", "text": "again"}
]


@pytest.fixture
def put(storage, monkeypatch, tmp_path):
    """Write an object and return its URL; the bucket is empty, and so is the cache."""
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path / "cache"))
    client = emptied_bucket(storage, monkeypatch)

    def write(key, content):
        client.put_object(Bucket=BUCKET, Key=key, Body=content)
        return f"s3://{BUCKET}/{key}"

    write.client = client
    return write


def lines(rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def as_csv(rows):
    return "".join(f"{row['id']},{row['text']},{row.get('label', '')}\n" for row in rows).encode()


def as_parquet(rows):
    table = {name: [row.get(name) for row in rows] for name in ("id", "text", "label")}
    file = BytesIO()
    pq.write_table(pa.table(table), file)
    return file.getvalue()


def picture(side=8):
    file = BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return file.getvalue()


# ---- what a URL is called -------------------------------------------------------------------------------


def test_a_url_and_the_path_of_its_copy_stand_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path))
    url = "s3://team-data/2026/posts.jsonl"
    path = local_path(url)
    assert path == tmp_path / "selftrain/objects/s3/team-data/2026/posts.jsonl"
    assert url_of(path) == url_or_path(path) == url
    # what pathlib has left of it
    assert local_path(path.__class__(url)) == path
    assert (
        name_urls(f"{path} is damaged, {path.parent}/x too") == f"{url} is damaged, s3://team-data/2026/x too"
    )
    for local in ("posts.jsonl", "/tmp/a:b/posts.jsonl", "a:/b", "-"):
        assert not is_url(local)
        assert str(local_path(local)) == local
        assert url_of(local_path(local)) is None
    assert local_path("abfs://posts@account.dfs.core.windows.net/a.csv").name == "a.csv"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://host/posts.jsonl", "https://host/posts.jsonl is no URL that is read"),
        ("ftp://me:secret@host/posts.jsonl", "ftp://host/posts.jsonl is no URL"),
        ("s3://key:secret@bucket/posts.jsonl", "names no bucket, or names a user"),
        ("s3://bucket/posts.jsonl?X-Amz-Signature=secret", "s3://bucket/posts.jsonl has ? or #"),
        ("s3://bucket/posts.jsonl?endpoint_override=evil", "has ? or #"),
        ("s3://bucket:9000/posts.jsonl", "names no bucket"),
        ("abfs://posts@evil.example/a.csv", "names no bucket"),
        ("abfs://posts@account.dfs.core.windows.net.evil.example/a.csv", "names no bucket"),
        ("abfs://me:secret@account.dfs.core.windows.net/a.csv", "names no bucket"),
        ("s3://bucket", "is a folder"),
        ("s3://bucket/folder/", "is a folder"),
        ("s3://bucket/../other/a.csv", "one of dots"),
        ("s3://bucket/a//b.csv", "an empty part"),
        ("s3://bucket/a\nb.csv", "a control character"),
        (f"s3://bucket/{'ä' * 120}.csv", "more than 200 bytes"),
    ],
)
def test_what_names_no_object_is_refused_without_its_secrets(url, told, tmp_path, monkeypatch):
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path))
    with pytest.raises(ManifestError) as refused:
        read_manifest(url)
    assert told in str(refused.value)
    assert "secret" not in str(refused.value)
    assert [*tmp_path.iterdir()] == []


# ---- a copy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("posts.jsonl", lines),
        ("posts.csv", lambda rows: b"id,text,label\n" + as_csv(rows)),
        ("posts.parquet", as_parquet),
        ("posts.jsonl.gz", lambda rows: gzip.compress(lines(rows))),
    ],
)
def test_every_form_is_read_as_a_local_file_is(put, tmp_path, name, write):
    here = tmp_path / name
    here.write_bytes(write(ROWS))
    local, remote = read_manifest(here), read_manifest(put(f"a/{name}", write(ROWS)))
    assert tuple(remote.posts) == tuple(local.posts)
    assert len(remote.posts) == 50
    assert remote.problems == local.problems
    assert [one["file"] for one in remote.quarantine if one["kind"] == "row"] == [f"s3://{BUCKET}/a/{name}"]


def test_an_object_is_fetched_again_only_where_it_changed(put):
    url = put("posts.jsonl", b'{"id": "a", "text": "one"}\n')
    path = local_path(url)
    assert [post.text for post in read_manifest(url).posts] == ["one"]
    first = path.stat()
    assert [post.text for post in read_manifest(url).posts] == ["one"]
    assert path.stat() == first
    put("posts.jsonl", b'{"id": "a", "text": "two"}\n')  # as long, and in the same second
    assert [post.text for post in read_manifest(url).posts] == ["two"]
    # a copy that somebody changed is none
    path.write_text('{"id": "a", "text": "mine"}\n')
    assert [post.text for post in read_manifest(url).posts] == ["two"]
    put.client.delete_object(Bucket=BUCKET, Key="posts.jsonl")
    with pytest.raises(ManifestError, match="there is no such object"):
        read_manifest(url)
    assert not path.exists()


def test_a_large_object_comes_in_parts_side_by_side(put, monkeypatch):
    monkeypatch.setattr(objects, "_BLOCK", 999)
    content = os.urandom(100_001)
    path = local_path(put("a/large.bin", content))
    assert objects.fetch(path) == 100_001
    assert path.read_bytes() == content


def test_of_several_that_want_a_large_object_one_fetches_it(put, monkeypatch):
    monkeypatch.setattr(objects, "_SHOWN", 1)
    path, copies, copy = local_path(put("large.bin", bytes(5000))), [], objects._copy

    def slow(*given):
        copies.append(given)
        time.sleep(0.5)
        copy(*given)

    monkeypatch.setattr(objects, "_copy", slow)
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(objects.fetch, [path] * 4)] == [5000] * 4
    assert len(copies) == 1


def test_a_fetch_that_is_killed_leaves_nothing_that_is_taken_for_whole(put):
    url = put("posts.jsonl", lines(ROWS))
    child = (
        "import os, signal, sys\n"
        "from selftrain._util.object_urls import local_path\n"
        "from selftrain.store import objects\n"
        "objects._BLOCK, blocks = 100, objects._blocks\n"
        "def cut(*given):\n"
        "    for number, block in enumerate(blocks(*given)):\n"
        "        if number == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield block\n"
        "objects._blocks = cut\n"
        "objects.fetch_table(local_path(sys.argv[1]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", child, url], check=False, timeout=120)
    assert killed.returncode == -9
    path = local_path(url)
    assert [one.name for one in path.parent.iterdir() if not one.name.startswith(".")] == []
    assert len(read_manifest(url).posts) == 50
    assert [one.name for one in path.parent.iterdir()] == ["posts.jsonl"]  # what was left is swept away


def test_an_object_that_changes_while_it_is_fetched_is_not_taken(put, monkeypatch):
    url, copy = put("posts.jsonl", lines(ROWS)), objects._copy

    def changing(*given):
        copy(*given)
        put("posts.jsonl", lines(ROWS[:10]))

    monkeypatch.setattr(objects, "_copy", changing)
    with pytest.raises(ManifestError, match="changed while it was fetched: give the same command again"):
        read_manifest(url)
    assert not local_path(url).exists()
    monkeypatch.setattr(objects, "_copy", copy)
    assert len(read_manifest(url).posts) == 10


@pytest.mark.parametrize("size", [10, 10_000])
def test_a_store_that_goes_while_it_is_read_leaves_nothing_and_is_told_as_such(put, monkeypatch, size):
    url = put("posts.jsonl", bytes(size))
    monkeypatch.setattr(objects, "_BLOCK", 1000)

    class Going:
        def __init__(self, file):
            self.file, self.size, self.metadata = file, file.size, file.metadata

        def read_at(self, count, start):
            if start + count == size:
                raise OSError("curlCode: 28, Timeout was reached")
            return self.file.read_at(count, start)

    class Store:
        @contextmanager
        def open_input_file(self, name):
            with opened(url)[0].open_input_file(name) as file:
                yield Going(file)

    opened = objects._opened
    monkeypatch.setattr(objects, "_opened", lambda url: (Store(), opened(url)[1]))
    with pytest.raises(ManifestError, match=r"cannot be read \(curlCode: 28.*the same command goes on"):
        read_manifest(url)
    assert [*local_path(url).parent.iterdir()] == []


def test_no_room_is_said_before_anything_is_fetched(put, monkeypatch):
    url = put("posts.jsonl", lines(ROWS))
    monkeypatch.setattr(objects.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(
        StorageError, match=r"posts\.jsonl has 2,\d+ bytes, and 10 are free in .*SELFTRAIN_CACHE"
    ):
        read_manifest(url)
    assert not local_path(url).exists()


# ---- what is wrong ----------------------------------------------------------------------------------------


def test_what_is_not_there_is_told_apart(put):
    put("folder/posts.csv", b"id,text\na,b\n")
    with pytest.raises(
        ManifestError, match=r"s3://runs/folder is a folder: name one of its objects, 'posts.csv'"
    ):
        read_manifest(f"s3://{BUCKET}/folder")
    with pytest.raises(ManifestError, match="there is no such object in the bucket"):
        read_manifest(f"s3://{BUCKET}/none.csv")
    with pytest.raises(ManifestError, match="there is no bucket 'no-such-bucket'"):
        read_manifest("s3://no-such-bucket/posts.csv")


def test_what_is_damaged_is_told_as_of_a_file(put):
    with pytest.raises(ManifestError, match="is damaged"):
        read_manifest(put("cut.jsonl.gz", gzip.compress(lines(ROWS * 50))[:-20]))
    with pytest.raises(ManifestError, match="unpacks to more than 100 times its size"):
        read_manifest(put("bomb.jsonl.gz", gzip.compress(bytes(1 << 27))))
    with pytest.raises(ManifestError, match="is not a Parquet file"):
        read_manifest(put("cut.parquet", as_parquet(ROWS)[:-20]))
    assert [one.reason for one in read_manifest(put("empty.jsonl", b"")).problems] == [
        "the file holds no rows"
    ]


def test_a_store_that_refuses_or_is_not_there_is_told_with_what_to_see_to(put, monkeypatch):
    url = put("posts.jsonl", lines(ROWS))
    with monkeypatch.context() as refusing:  # the server runs in this process, and knows no key of ours
        refusing.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
        with pytest.raises(ManifestError, match=r"cannot be read .*AWS_ACCESS_KEY_ID"):
            read_manifest(url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(ManifestError, match=r"cannot be read .*AWS_ENDPOINT_URL"):
            read_manifest(url)


def test_a_proxy_of_the_environment_is_asked(put, monkeypatch):
    url, heard = put("posts.jsonl", lines(ROWS)), []
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def refuse():
            while True:
                try:
                    asking, _ = proxy.accept()
                except OSError:
                    return
                with asking:
                    heard.append(asking.recv(1000).split(b"\r\n")[0])
                    asking.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.example")
        with pytest.raises(ManifestError, match="cannot be read"):
            read_manifest(url)
    assert b"storage.example" in heard[0]


# ---- pictures ---------------------------------------------------------------------------------------------


def test_pictures_beside_an_object_come_with_their_rows(put):
    put("a/images/1.png", picture())
    put("a/images/2 ü.png", picture(9))
    put("a/unnamed.png", picture())
    rows = [
        {"id": "one", "images": ["images/1.png"]},
        {"id": "two", "images": ["images/1.png", "images\\2 ü.png"]},
        {"id": "none", "images": ["images/3.png"]},
        {"id": "words", "text": "of its own"},
    ]
    url = put("a/posts.jsonl", lines(rows))
    report = read_manifest(url)
    assert [post.id for post in report.posts] == ["one", "two", "words"]
    assert [image.read_bytes() for image in report.posts[1].images] == [picture(), picture(9)]
    assert [one.post_id for one in report.problems] == ["none"]
    assert report.problems[0].reason.startswith("image 'images/3.png': no such file")
    folder = local_path(url).parent
    found = sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())
    assert found == ["images/1.png", "images/2 ü.png", "posts.jsonl"]  # nothing else was fetched
    # a picture that changes, comes or goes is seen at the next start
    put("a/images/1.png", picture(10))
    put("a/images/3.png", picture())
    put.client.delete_object(Bucket=BUCKET, Key="a/images/2 ü.png")
    report = read_manifest(url)
    assert [post.id for post in report.posts] == ["one", "none", "words"]
    assert report.posts[0].images[0].read_bytes() == picture(10)


def test_rows_have_nothing_fetched_but_what_lies_beside_their_manifest(put, monkeypatch):
    put("secret.png", picture())
    put("a/good.png", picture())
    named = [
        f"s3://{BUCKET}/secret.png", f"s3:/{BUCKET}/secret.png", "https://host/a.png", "../secret.png",
        "/etc/passwd", "../../other-bucket/a.png", ".", "images/", "x" * 300, "\ud800.png", "\udc80.png",
        "a\nb.png", "..", "posts.jsonl/../../secret.png", "good.png",
    ]  # fmt: skip
    asked, opened = [], objects._opened
    monkeypatch.setattr(objects, "_opened", lambda url: (asked.append(url), opened(url))[1])
    url = put("a/posts.jsonl", lines([{"id": str(i), "images": [one]} for i, one in enumerate(named)]))
    report = read_manifest(url)
    assert [post.id for post in report.posts] == [str(len(named) - 1)]
    assert len(report.problems) == len(named) - 1
    assert all(one.startswith(f"s3://{BUCKET}/a/") for one in asked)
    assert not local_path(f"s3://{BUCKET}/secret.png").exists()


def test_a_picture_past_the_limit_is_set_aside_and_not_fetched(put, monkeypatch):
    monkeypatch.setattr("selftrain.store.objects.MAX_BYTES", 1000)
    put("a/large.png", bytes(1001))
    url = put("a/posts.jsonl", lines([{"id": "a", "images": ["large.png"]}, {"id": "b", "text": "b"}]))
    report = read_manifest(url)
    assert [one.reason for one in report.problems] == [
        "image 'large.png' holds 1,001 bytes, at most 1,000 are fetched"
    ]
    assert not (local_path(url).parent / "large.png").exists()


def test_many_pictures_are_asked_for_before_their_rows(put, monkeypatch):
    for i in range(30):
        put(f"a/{i}.png", picture(i + 1))
    url = put("a/posts.jsonl", lines([{"id": str(i), "images": [f"{i % 30}.png"]} for i in range(40)]))
    meeting = threading.Barrier(8, timeout=60)  # broken, if fewer than that ever wait at once
    fetch = objects.fetch

    def together(path, most=None):
        if path.suffix == ".png" and int(path.stem) < 8:
            meeting.wait()
        return fetch(path, most)

    monkeypatch.setattr(objects, "fetch", together)
    report = read_manifest(url)
    assert report.problems == ()
    assert [Image.open(post.images[0]).size[0] for post in report.posts] == [i % 30 + 1 for i in range(40)]


def test_a_store_that_goes_on_the_way_ends_the_reading_and_sets_no_row_aside(put, monkeypatch):
    put("a/1.png", picture())
    url = put("a/posts.jsonl", lines([{"id": "a", "text": "a"}, {"id": "b", "images": ["1.png"]}]))
    fetch = objects.fetch

    def gone(path, most=None):
        if path.suffix == ".png":
            raise ManifestError("the store is gone")
        return fetch(path, most)

    monkeypatch.setattr(objects, "fetch", gone)
    with pytest.raises(ManifestError, match="the store is gone"):
        read_manifest(url)


# ---- another store ----------------------------------------------------------------------------------------

GOOGLE = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        asked = urlsplit(self.path)
        file = Path(sys.argv[1]) / unquote(asked.path.rpartition("/o/")[2])
        status, body = 404, b"{}"
        if file.is_file():
            status, body = 200, file.read_bytes()
            if "alt=media" not in asked.query:
                body = b'{"kind":"storage#object","name":"x","bucket":"b","generation":"%d","size":"%d",' % (
                    file.stat().st_mtime_ns // 1000, len(body)) + b'"etag":"%d"}' % file.stat().st_mtime_ns
            elif told := self.headers.get("range"):
                first, _, last = told.removeprefix("bytes=").partition("-")
                status, body = 206, body[int(first):int(last or len(body)) + 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def google_storage(folder):
    """A server of Google's JSON protocol, as far as reading goes; a process, as Arrow holds ours."""
    with subprocess.Popen(
        [sys.executable, "-c", GOOGLE, str(folder)], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.kill()


def test_google_cloud_storage_is_read_too(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "google" / "a"
    place.mkdir(parents=True)
    (place / "posts.jsonl").write_bytes(lines(ROWS))
    with google_storage(tmp_path / "google") as address:
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)
        assert len(read_manifest("gs://bucket/a/posts.jsonl").posts) == 50
        (place / "posts.jsonl").write_bytes(lines(ROWS[:7]))
        assert len([*open_table("gs://bucket/a/posts.jsonl").rows]) == 7

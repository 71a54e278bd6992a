"""What is written as a manifest, in any format, comes back as it was."""

from __future__ import annotations

import json
import tempfile
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_manifest import TASK

from selftrain.data.manifest import read_manifest
from selftrain.data.manifest_writing import write_manifest
from selftrain.data.posts import Post
from selftrain.data.tables import fold
from selftrain.errors import ManifestError

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
scalars = st.one_of(
    texts.filter(bool), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
values = st.one_of(scalars, st.lists(scalars, max_size=2), st.dictionaries(texts, scalars, max_size=2))
names = texts.filter(
    lambda name: name.isprintable() and name == name.strip() and name and not name.startswith("p")
)


def _posts(extra):
    images = st.lists(st.sampled_from(["a.png", "odd;name.png", "[x].png"]), max_size=3)
    return st.lists(
        st.tuples(
            texts.filter(str.strip),
            texts,
            images,
            st.sampled_from([None, "spam", "ham"]),
            st.dictionaries(st.sampled_from(["link", "faces"]), st.sampled_from(["yes", "no"])),
            st.dictionaries(
                names.filter(lambda name: name not in ("id", "text", "images", "label")), extra, max_size=2
            ),
        ).filter(lambda row: fold(row[1]) or row[2]),
        min_size=1,
        max_size=4,
        unique_by=lambda row: row[0],
    )


@pytest.mark.parametrize("name", ["IMG", "Image", "LABEL", "Process", "Vi-Deo", "TEXT", "I D"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_an_extra_that_is_spelled_like_a_field_stays_one(name, suffix):
    bare, full = ("a", "words", [], None, {}, {name: "yes"}), ("b", "more", ["a.png"], "ham", {}, {})
    _round_trip([bare, full], suffix)


def _round_trip(rows, suffix):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for image in ("a.png", "odd;name.png", "[x].png"):
            Image.new("RGB", (4, 4)).save(folder / image)
        posts = [Post(i, t, tuple(folder / one for one in im), la, pr, ex) for i, t, im, la, pr, ex in rows]
        write_manifest(posts, folder / f"posts{suffix}")
        report = read_manifest(folder / f"posts{suffix}", TASK)
        assert report.problems == ()
        assert list(report.posts) == posts


@settings(deadline=None, max_examples=40)
@given(_posts(values), st.sampled_from([".jsonl", ".parquet"]))
def test_posts_come_back(rows, suffix):
    _round_trip(rows, suffix)


@settings(deadline=None, max_examples=40)
@given(_posts(texts.filter(bool)))
def test_posts_come_back_from_csv(rows):
    _round_trip(rows, ".csv")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_posts_of_a_grown_dataset_are_written_anywhere_and_keep_their_pictures(tmp_path, suffix):
    """Whoever reads them finds the pictures where the run did, unless another one lies in the way."""
    for name in ("data", "run", "other", "taken"):
        (tmp_path / name).mkdir()
    picture = tmp_path / "data" / "a.png"
    Image.new("RGB", (20, 20)).save(picture)
    told = {"folder": str(picture.parent), "sha256": [sha256(picture.read_bytes()).hexdigest()]}
    row = {"id": "a", "images": ["a.png"], "provenance": {"source": "label", "pictures": told}}
    (tmp_path / "run" / "grown.jsonl").write_text(json.dumps(row) + "\n")
    posts = read_manifest(tmp_path / "run" / "grown.jsonl").posts
    for folder in ("run", "other"):
        write_manifest(posts, tmp_path / folder / f"out{suffix}")
        [back] = read_manifest(tmp_path / folder / f"out{suffix}").posts
        assert back.images == (picture.resolve(),)
    (tmp_path / "taken" / "a.png").write_bytes(b"another picture")
    for out in (tmp_path / "taken" / f"out{suffix}", tmp_path / "run" / "out.csv"):
        with pytest.raises(ManifestError, match="lies outside the manifest's folder"):
            write_manifest(posts, out)


def test_grown_datasets_that_were_put_together_have_each_its_own_pictures(tmp_path):
    rows = []
    for name, colour in (("one", "red"), ("two", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 20), colour).save(tmp_path / name / "a.png")
        digest = sha256((tmp_path / name / "a.png").read_bytes()).hexdigest()
        told = {"folder": str(tmp_path / name), "sha256": [digest]}
        rows.append({"id": name, "images": ["a.png"], "provenance": {"pictures": told}})
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "grown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    posts = read_manifest(tmp_path / "both" / "grown.jsonl").posts
    assert [post.images[0].parent.name for post in posts] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("Total\ncount", (".csv", ".parquet")), ("a\u200b", (".csv", ".parquet")), ("video ", (".csv",)),
        ("", (".csv",)), ("selftrain.escaped", (".csv",)),
    ],
)  # fmt: skip
def test_a_field_that_would_come_back_as_another_is_refused(tmp_path, name, refused):
    posts = [Post("a", "=x", extra={name: "1"}), Post("b", "y")]
    for suffix in (".jsonl", ".csv", ".parquet"):
        file = tmp_path / f"posts{suffix}"
        if suffix in refused:
            with pytest.raises(ManifestError, match="cannot be columns of such a table"):
                write_manifest(posts, file)
            assert not file.exists()
        else:
            write_manifest(posts, file)
            assert list(read_manifest(file).posts) == posts

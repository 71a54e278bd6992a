"""The feature cache: addressing, resuming, refusing, and how much memory it takes."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.base import Encoded, EncodeFailure, FeatureLayout
from selftrain.data.feature_store import FORMAT, FeatureStore
from selftrain.data.features import extract_features
from selftrain.errors import CacheError, RecipeError, TrainingError

CHECKOUT = Path(__file__).parents[3]


@dataclass(frozen=True)
class SomePost:
    id: str
    text: str = ""
    images: tuple[Path, ...] = ()


class FakeBackbone:
    """A row is decided by the text alone; posts whose text is "bad" fail, "inf" gives no finite row."""

    name = "fake"
    layout = FeatureLayout(4, 2)

    def __init__(self, weights="one"):
        self.weights = weights
        self.encoded = []

    def fingerprint(self):
        return sha256(self.weights.encode()).hexdigest()

    def encode(self, posts, *, batch_size=64, workers=0, progress=False):
        self.encoded.append([post.text for post in posts])
        rows = np.stack([row_of(post.text) for post in posts])
        failures = tuple(EncodeFailure(i, "no good") for i, post in enumerate(posts) if post.text == "bad")
        return Encoded(rows, failures)


def row_of(text):
    row = np.frombuffer(sha256(text.encode()).digest(), dtype=np.uint8)[:8].astype(np.float32)
    return row if text not in {"bad", "inf"} else np.full(8, np.inf if text == "inf" else np.nan, np.float32)


def some_posts(count, start=0):
    return [SomePost(f"id{i}", f"text {i}") for i in range(start, start + count)]


def expected(posts):
    return np.stack([row_of(post.text) for post in posts])


def folder_of(root):
    return root / f"{FakeBackbone().fingerprint()[:16]}-{FORMAT}"


def test_rows_come_back_in_any_order(tmp_path):
    posts = some_posts(700)
    table = extract_features(posts, FakeBackbone(), tmp_path, batch_size=3)
    assert len(table) == 700
    assert table.layout == (4, 2)
    positions = [*np.random.RandomState(0).permutation(700)[:600].tolist(), 5, 5]
    np.testing.assert_array_equal(table.rows(positions), expected([posts[i] for i in positions]))
    assert table.rows([]).shape == (0, 8)


def test_chunks_cover_all_posts_in_order(tmp_path):
    posts = some_posts(10)
    table = extract_features(posts, FakeBackbone(), tmp_path)
    parts = list(table.chunks(4))
    assert [part.tolist() for part, _ in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), expected(posts))


@pytest.mark.parametrize("position", [-1, 3])
def test_positions_outside_are_refused(tmp_path, position):
    table = extract_features(some_posts(3), FakeBackbone(), tmp_path)
    with pytest.raises(IndexError, match="holds 3 posts"):
        table.rows([0, position])


def test_a_second_run_and_new_names_are_hits(tmp_path):
    draw = lambda name, shade: Image.new("L", (4, 4), shade).save(tmp_path / name)  # noqa: E731
    draw("a.png", 10)
    draw("copy.png", 10)
    draw("b.png", 11)
    root = tmp_path / "cache"
    extract_features([SomePost("x", "t", (tmp_path / "a.png",))], FakeBackbone(), root)
    again = FakeBackbone()
    extract_features([SomePost("other id", "t", (tmp_path / "copy.png",))], again, root, workers=2)
    assert again.encoded == []
    misses = [
        SomePost("pixels", "t", (tmp_path / "b.png",)),
        SomePost("text", "t2", (tmp_path / "a.png",)),
        SomePost("album", "t", (tmp_path / "a.png", tmp_path / "a.png")),
        SomePost("no image", "t"),
    ]
    extract_features(misses, again, root)
    assert again.encoded == [["t", "t2", "t", "t"]]


def test_equal_posts_are_encoded_once(tmp_path):
    backbone = FakeBackbone()
    table = extract_features([SomePost("a", "x"), SomePost("b", "x")], backbone, tmp_path)
    assert backbone.encoded == [["x"]]
    np.testing.assert_array_equal(table.rows([0, 1]), expected([SomePost("", "x")] * 2))


def test_another_backbone_has_a_folder_of_its_own(tmp_path):
    extract_features(some_posts(2), FakeBackbone(), tmp_path)
    other = FakeBackbone("two")
    extract_features(some_posts(2), other, tmp_path)
    assert len(other.encoded) == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_failures_have_reasons_read_as_nan_and_are_tried_again(tmp_path):
    text_file = tmp_path / "no.png"
    text_file.write_text("x")
    posts = [
        SomePost("good", "a"),
        SomePost("bad", "bad"),
        SomePost("infinite", "inf"),
        SomePost("no image", "a", (text_file,)),
        SomePost("gone", "a", (tmp_path / "gone.png",)),
    ]
    table = extract_features(posts, FakeBackbone(), tmp_path / "c")
    assert set(table.failed) == {"bad", "infinite", "no image", "gone"}
    assert table.failed["bad"] == "no good"
    assert "not finite" in table.failed["infinite"]
    assert "no.png" in table.failed["no image"]
    assert "no such file" in table.failed["gone"]
    assert np.isnan(table.rows([1, 2, 3, 4])).all()
    np.testing.assert_array_equal(table.rows([0]), expected(posts[:1]))
    again = FakeBackbone()
    extract_features(posts, again, tmp_path / "c")
    assert again.encoded == [["bad", "inf"]]


@pytest.mark.parametrize("torn", ["rows", "keys"])
def test_what_a_kill_left_half_written_is_ignored_then_removed(tmp_path, torn):
    posts = some_posts(5)
    extract_features(posts, FakeBackbone(), tmp_path)
    rows, keys = folder_of(tmp_path) / "rows.f32", folder_of(tmp_path) / "keys.bin"
    with rows.open("ab") as file:
        file.write(b"\xff" * 40)
    if torn == "keys":
        with keys.open("ab") as file:
            file.write(b"\xff" * 31)
    reader = FakeBackbone()
    np.testing.assert_array_equal(
        extract_features(posts, reader, tmp_path).rows(np.arange(5)), expected(posts)
    )
    assert reader.encoded == []
    more = some_posts(8)
    np.testing.assert_array_equal(extract_features(more, reader, tmp_path).rows(np.arange(8)), expected(more))
    assert (rows.stat().st_size, keys.stat().st_size) == (8 * 32, 8 * 36)


@pytest.mark.parametrize("place", [0, 70, 95])
def test_a_bit_that_flips_in_a_row_is_seen(tmp_path, place):
    posts = some_posts(3)
    table = extract_features(posts, FakeBackbone(), tmp_path)
    rows = folder_of(tmp_path) / "rows.f32"
    content = bytearray(rows.read_bytes())
    content[place] ^= 4
    rows.write_bytes(content)
    with pytest.raises(CacheError, match=f"another row {place // 32} than was written.*Delete"):
        table.rows(np.arange(3))
    sound = [row for row in range(3) if row != place // 32]
    np.testing.assert_array_equal(table.rows(sound), expected(posts)[sound])


@pytest.mark.parametrize("place", [5, 34])
def test_a_key_that_is_damaged_gives_no_row(tmp_path, place):
    posts = some_posts(3)
    extract_features(posts, FakeBackbone(), tmp_path)
    keys = folder_of(tmp_path) / "keys.bin"
    content = bytearray(keys.read_bytes())
    content[place] ^= 4
    keys.write_bytes(content)
    reader = FakeBackbone()
    table = extract_features(posts, reader, tmp_path)
    if place < 32:  # another post's key: the row is computed again
        assert reader.encoded == [["text 0"]]
        np.testing.assert_array_equal(table.rows(np.arange(3)), expected(posts))
    else:
        with pytest.raises(CacheError, match="another row 0"):
            table.rows(np.arange(3))


def test_damage_and_mismatch_are_cache_errors(tmp_path):
    extract_features(some_posts(3), FakeBackbone(), tmp_path)
    folder = folder_of(tmp_path)
    os.truncate(folder / "rows.f32", 64)
    with pytest.raises(CacheError, match=r"holds 2 rows, keys\.bin names 3.*Delete"):
        extract_features(some_posts(3), FakeBackbone(), tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "width": 9}))
    with pytest.raises(CacheError, match=r"another cache: found .*'width': 9"):
        extract_features(some_posts(3), FakeBackbone(), tmp_path)
    (folder / "meta.json").write_text("{")
    with pytest.raises(CacheError, match="not JSON"):
        extract_features(some_posts(3), FakeBackbone(), tmp_path)


def test_rows_without_their_meta_are_not_trusted(tmp_path):
    extract_features(some_posts(3), FakeBackbone(), tmp_path)
    (folder_of(tmp_path) / "meta.json").unlink()
    again = FakeBackbone()
    extract_features(some_posts(3), again, tmp_path)
    assert len(again.encoded[0]) == 3


def test_a_cache_folder_that_is_a_file(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheError, match="Check that the cache folder"):
        extract_features(some_posts(1), FakeBackbone(), tmp_path / "cache")


def test_a_removed_cache_is_an_error_at_the_next_read(tmp_path):
    table = extract_features(some_posts(1), FakeBackbone(), tmp_path)
    (folder_of(tmp_path) / "rows.f32").unlink()
    with pytest.raises(CacheError):
        table.rows([0])


def test_extraction_is_stored_as_it_goes(tmp_path):
    class Failing(FakeBackbone):
        def encode(self, posts, **options):
            if len(self.encoded) == 2:
                raise KeyboardInterrupt
            return super().encode(posts, **options)

    posts = some_posts(100)
    with pytest.raises(KeyboardInterrupt):
        extract_features(posts, Failing(), tmp_path, batch_size=1)
    rest = FakeBackbone()
    table = extract_features(posts, rest, tmp_path, batch_size=1)
    assert [len(part) for part in rest.encoded] == [32, 4]
    np.testing.assert_array_equal(table.rows(np.arange(100)), expected(posts))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_features import FakeBackbone, some_posts, expected, extract_features, CacheError
import numpy as np
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
root = Path(sys.argv[1])
extract_features(some_posts(40), FakeBackbone(), root, batch_size=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (50 * 32, 50 * 32))
try:
    extract_features(some_posts(80), FakeBackbone(), root, batch_size=1)
except CacheError as error:
    print(error)
posts = some_posts(40)
backbone = FakeBackbone()
assert (extract_features(posts, backbone, root).rows(np.arange(40)) == expected(posts)).all()
assert backbone.encoded == []
"""


@pytest.mark.parametrize(
    ("spoil", "shape"),
    [(lambda rows: rows[:-1], r"\(4, 8\)"), (lambda rows: rows[:, 1:], r"\(5, 7\)"), (np.ravel, r"\(40,\)")],
)
def test_rows_of_another_shape_are_refused_and_not_kept(tmp_path, spoil, shape):
    class Own(FakeBackbone):
        def encode(self, posts, **options):
            return Encoded(spoil(super().encode(posts, **options).rows), ())

    posts = some_posts(5)
    with pytest.raises(RecipeError, match=rf"Own as backbone: encode gave rows of shape {shape} for 5 posts"):
        extract_features(posts, Own(), tmp_path)
    found = extract_features(posts, FakeBackbone(), tmp_path).rows(np.arange(5))
    np.testing.assert_array_equal(found, expected(posts))


def test_rows_of_other_numbers_are_kept_as_float32(tmp_path):
    class Own(FakeBackbone):
        def encode(self, posts, **options):
            return Encoded(super().encode(posts, **options).rows.astype(float).tolist(), ())

    posts = some_posts(5)
    found = extract_features(posts, Own(), tmp_path).rows(np.arange(5))
    np.testing.assert_array_equal(found, expected(posts))


def test_a_device_without_memory_is_said_so_and_what_was_encoded_is_kept(tmp_path):
    class Full(FakeBackbone):
        def encode(self, posts, **options):
            if len(self.encoded) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().encode(posts, **options)

    full, posts = Full(), some_posts(96)
    with pytest.raises(TrainingError, match=r"out of memory over 32 posts: .*a vLLM server beside"):
        extract_features(posts, full, tmp_path, batch_size=1)
    again = FakeBackbone()
    np.testing.assert_array_equal(
        extract_features(posts, again, tmp_path).rows(np.arange(96)), expected(posts)
    )
    assert [len(part) for part in again.encoded] == [32]


def test_a_full_disk_says_what_to_free_and_leaves_the_cache_readable(tmp_path):
    """The kernel's file size limit stands in for the disk: the same short write, then an error."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no space for" in done.stdout
    assert "Free some, delete folders of other backbones" in done.stdout.replace("\n", " ")
    assert (folder_of(tmp_path) / "rows.f32").stat().st_size == 40 * 32


READ_ALL = """
import resource, sys
from pathlib import Path
import numpy as np
from backbones.base import FeatureLayout
from selftrain.data.feature_store import FeatureStore
store = FeatureStore(Path(sys.argv[1]), "f" * 64, FeatureLayout(1022, 1024))
total = float(store.read(np.arange(500)).mean())  # warms up what numpy and the store need once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for positions in (np.arange(12_000), np.random.RandomState(0).permutation(12_000)):
    for start in range(0, 12_000, 500):
        total += float(store.read(positions[start : start + 500]).mean())
print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_table(tmp_path):
    """98 MB of rows are read, in order and at random, by a process that grows by less than 40 MB."""
    layout = FeatureLayout(1022, 1024)
    store = FeatureStore(tmp_path, "f" * 64, layout)
    block = np.ones((2000, layout.width), dtype=np.float32)
    with store.writing():
        for part in range(6):
            store.append([sha256(f"{part} {i}".encode()).digest() for i in range(2000)], block)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    total, grown = map(float, done.stdout.split())
    assert total == pytest.approx(49)
    assert grown < 40_000, f"grew by {grown} kB"

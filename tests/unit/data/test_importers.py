"""Importers: the real files where they are, and small files in the published form where they are not."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter

import pytest
from PIL import Image

from selftrain.data.importers import IMPORTERS, import_named
from selftrain.data.manifest import read_manifest
from selftrain.data.task import load_task
from selftrain.errors import ManifestError, StorageError


def _import(name, source, tmp_path, **options):
    """The posts by id, and what the import said; the manifest has no bad row."""
    done = import_named(name, source, tmp_path / "out", **options)
    report = read_manifest(done.manifest, load_task(done.task))
    assert report.problems == ()
    assert len(report.posts) == done.posts
    return {post.id: post for post in report.posts}, done


def _write_lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _draw(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def test_real_hsol(data_root, tmp_path):
    posts, done = _import("hsol", data_root / "hsol", tmp_path)
    assert Counter(post.label for post in posts.values()) == {"offensive": 1430 + 19190, "inoffensive": 4163}
    assert done.skipped == ()
    assert posts["hsol-0"].text.startswith("!!! RT @mayasolovely: As a woman")
    raw = {"count": "3", "hate_speech": "0", "offensive_language": "0", "neither": "3", "class": "2"}
    assert posts["hsol-0"].extra == raw
    assert posts["hsol-9"].text.endswith("\n\nbitch")


def test_real_sentiment140(data_root, tmp_path):
    posts, _ = _import("sentiment140", data_root / "sentiment140", tmp_path)
    assert Counter(post.label for post in posts.values()) == {"positive": 20000, "negative": 20000}
    assert posts["positive-2"].text.startswith("Home from work.")


def test_real_harmeme(data_root, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    lines = (data_root / "harmeme" / "val.jsonl").read_text().splitlines()[:5]
    (source / "val.jsonl").write_text("\n".join(lines))
    (source / "images").symlink_to(data_root / "harmeme" / "images")
    with pytest.raises(ManifestError, match="leads out of"):
        import_named("harmeme", source, tmp_path / "refused")
    posts, done = _import("harmeme", data_root / "harmeme", tmp_path)
    assert Counter(post.label for post in posts.values()) == {"harmless": 1949 + 116, "harmful": 1064 + 61}
    assert Counter(post.extra["published_split"] for post in posts.values()) == {"train": 3013, "val": 177}
    assert all(post.images and "split" not in post.extra for post in posts.values())
    assert done.text_only == 0


def test_real_hateful_memes_without_images(data_root, tmp_path):
    with pytest.raises(ManifestError, match=r"9,000 images are missing, .*img.*--allow-missing-images"):
        import_named("hateful-memes", data_root / "fhm_text", tmp_path / "refused")
    assert not (tmp_path / "refused" / "manifest.jsonl").exists()
    posts, done = _import("hateful-memes", data_root / "fhm_text", tmp_path, allow_missing_images=True)
    assert done.text_only == 9000
    assert Counter(post.extra["split"] for post in posts.values()) == {"train": 8500, "test": 500}
    train = [post for post in posts.values() if post.extra["published_split"] == "train"]
    assert Counter(post.label for post in train) == {"not_hateful": 5493, "hateful": 3007}
    for post in posts.values():
        attacked = set(post.extra["gold_pc"])
        assert (post.process["religion"] == "yes") == ("religion" in attacked)
        assert (post.process["gender_or_group"] == "yes") == bool({"sex", "disability"} & attacked)
        assert (post.process["ethnicity_or_country"] == "yes") == bool({"race", "nationality"} & attacked)


def test_hateful_memes_as_first_published(tmp_path):
    source = tmp_path / "source"
    row = {"id": 42, "img": "img/00042.png", "label": 1, "text": "some words"}
    _write_lines(source / "train.jsonl", row, row | {"id": 43, "label": 0}, row | {"id": 44, "label": 7})
    _write_lines(source / "dev_seen.jsonl", row | {"id": 50})
    _write_lines(source / "dev_unseen.jsonl", row | {"id": 50}, row | {"id": 51})
    _write_lines(source / "test_seen.jsonl", row | {"id": 60})
    _write_lines(source / "test.jsonl", {"id": 70, "img": "img/00042.png", "text": "held back"})
    _draw(source / "img" / "00042.png")
    posts, done = _import("hateful-memes", source, tmp_path)
    assert {key: (post.label, post.extra["split"]) for key, post in posts.items()} == {
        "42": ("hateful", "train"),
        "43": ("not_hateful", "train"),
        "50": ("hateful", "validation"),
        "51": ("hateful", "validation"),
        "60": ("hateful", "test"),
        "70": (None, "pool"),
    }
    assert [(one.post_id, one.reason) for one in done.skipped] == [
        ("44", "train.jsonl: label 7"),
        ("50", "id '50' was met before (dev_unseen.jsonl)"),
    ]
    assert posts["42"].images == ((tmp_path / "out" / "images" / "img" / "00042.png").resolve(),)
    assert posts["42"].process == {}


def test_harmeme_as_published(tmp_path):
    source = tmp_path / "source"
    rows = [
        {"id": "m_1", "image": "m_1.png", "labels": ["very harmful", "individual"], "text": "one"},
        {"id": "m_2", "image": "m_2.png", "labels": ["not harmful"], "text": "two"},
        {"id": "m_3", "image": "m_3.png", "labels": ["somewhat harmful", "community"], "text": ""},
    ]
    for split, row in zip(("train", "val", "test"), rows, strict=True):
        _write_lines(source / "annotations" / f"{split}.jsonl", row)
        _draw(source / "images" / row["image"])
    posts, _ = _import("harmeme", source, tmp_path)
    told = {key: (post.label, post.process["target"], post.extra["split"]) for key, post in posts.items()}
    assert told == {
        "m_1": ("harmful", "individual", "train"),
        "m_2": ("harmless", "none", "validation"),
        "m_3": ("harmful", "community", "test"),
    }
    assert posts["m_1"].extra["labels"] == ["very harmful", "individual"]
    assert [path.name for path in posts["m_3"].images] == ["m_3.png"]


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("hateful-memes", {"id": None, "label": 0, "text": "x"}, "no id"),
        ("hateful-memes", {"id": " ", "label": 0, "text": "x"}, "no id"),
        ("hateful-memes", {"id": ["a"], "label": 0, "text": "x"}, "is a list, expected a text"),
        ("hateful-memes", {"id": 3, "label": 0, "text": ["x"]}, "is a list, expected a text"),
        ("hateful-memes", {"id": 3, "label": 0, "text": "x", "img": ["a", "b"]}, "2 images, at most 1"),
        ("harmeme", {"id": None, "labels": ["not harmful"], "text": "x"}, "no id"),
        ("harmeme", {"id": 3, "labels": ["not harmful"], "text": "x", "images": ["a", "b"]}, "2 images"),
        ("harmeme", {"id": 3, "labels": ["very harmful", "aliens"], "text": "x"}, "targets ['aliens']"),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out_and_told(tmp_path, name, row, reason):
    good = {"id": 1, "label": 0, "labels": ["not harmful"], "text": "good"}
    _write_lines(tmp_path / "source" / "train.jsonl", good, row)
    posts, done = _import(name, tmp_path / "source", tmp_path)
    assert [*posts] == ["1"]
    assert [(one.line, reason in one.reason) for one in done.skipped] == [(2, True)]


def test_a_row_without_a_file_name_is_left_out_and_told(tmp_path):
    header = "file_name\tmisogynous\tshaming\tstereotype\tobjectification\tviolence\tText Transcription\n"
    rows = "a.jpg\t0\t0\t0\t0\t0\tgood\n\t0\t0\t0\t0\t0\tbad\n"
    (tmp_path / "training.csv").write_text(header + rows)
    posts, done = _import("mami", tmp_path / "training.csv", tmp_path, allow_missing_images=True)
    assert [*posts] == ["a.jpg"]
    assert [(one.line, one.reason) for one in done.skipped] == [(3, "training.csv: no file_name")]


def test_one_picture_may_stand_alone_in_the_field_of_several(tmp_path):
    row = {"id": "a", "images": "m.png", "labels": ["not harmful"], "text": "x"}
    _write_lines(tmp_path / "source" / "train.jsonl", row)
    _draw(tmp_path / "source" / "m.png")
    posts, _ = _import("harmeme", tmp_path / "source", tmp_path)
    assert [path.name for path in posts["a"].images] == ["m.png"]


def test_sentiment140_as_published(tmp_path):
    path = tmp_path / "training.csv"
    path.write_bytes(
        '"0","7","Mon Apr 06","NO_QUERY","me","café, closed"\n"4","8","Mon","NO_QUERY","me","yes"\n'
        '"2","9","Mon","NO_QUERY","me","so so"\n"4","7","Mon","NO_QUERY","me","again"\n"4","x"\n'.encode(
            "latin-1"
        )
    )
    posts, done = _import("sentiment140", path, tmp_path)
    assert {key: (post.text, post.label) for key, post in posts.items()} == {
        "tweet-7": ("café, closed", "negative"),
        "tweet-8": ("yes", "positive"),
    }
    assert [one.line for one in done.skipped] == [3, 4, 5]


def test_mami_as_published(tmp_path):
    source = tmp_path / "source"
    header = "file_name\tmisogynous\tshaming\tstereotype\tobjectification\tviolence\tText Transcription\n"
    (source / "TRAINING").mkdir(parents=True)
    (source / "test").mkdir()
    (source / "TRAINING" / "training.csv").write_text(
        header + '1.jpg\t1\t0\t1\t0\t0\t"some ""quoted"" '
        'words"\n2.jpg\t0\t0\t0\t0\t0\tplain\n3.jpg\t9\t0\t0\t0\t0\tx\n'
    )
    (source / "test" / "Test.csv").write_text(
        "file_name\tText Transcription\n1.jpg\tother\n5.jpg\theld back\n"
    )
    (source / "test_labels.txt").write_text("1.jpg\t1\t1\t0\t0\t1\n")
    for place in ("TRAINING/1.jpg", "TRAINING/2.jpg", "test/1.jpg", "test/5.jpg"):
        _draw(source / place)
    posts, done = _import("mami", source, tmp_path)
    assert posts["1.jpg"].text == 'some "quoted" words'
    yes = {"shaming": "no", "stereotype": "yes", "objectification": "no", "violence": "no"}
    assert (posts["1.jpg"].label, posts["1.jpg"].process) == ("misogynous", yes)
    assert posts["2.jpg"].label == "not_misogynous"
    assert posts["test-1.jpg"].label == "misogynous"
    assert posts["test-1.jpg"].process["violence"] == "yes"
    assert posts["test-1.jpg"].images != posts["1.jpg"].images
    assert (posts["test-5.jpg"].label, posts["test-5.jpg"].extra["split"]) == (None, "pool")
    assert [one.post_id for one in done.skipped] == ["3.jpg"]


def test_an_image_path_that_leads_out_is_not_followed(tmp_path):
    source = tmp_path / "source"
    row = {"id": 1, "img": "../secret.png", "label": 0, "text": "x"}
    _write_lines(source / "train.jsonl", row, row | {"id": 2, "img": "img/a.png"})
    _draw(tmp_path / "secret.png")
    _draw(source / "img" / "a.png")
    posts, done = _import("hateful-memes", source, tmp_path)
    assert list(posts) == ["2"]
    assert "leads out of" in done.skipped[0].reason


def test_importing_twice_changes_nothing(tmp_path):
    source = tmp_path / "source"
    _write_lines(source / "train.jsonl", {"id": 1, "img": "img/a.png", "label": 0, "text": "x"})
    _draw(source / "img" / "a.png")
    first, _ = _import("hateful-memes", source, tmp_path)
    again, _ = _import("hateful-memes", source, tmp_path)
    assert first == again


def test_a_disk_that_is_full_is_named_by_what_could_not_be_written(tmp_path, monkeypatch):
    _write_lines(tmp_path / "source" / "train.jsonl", {"id": 1, "img": "m.png", "label": 0, "text": "x"})
    _draw(tmp_path / "source" / "m.png")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("link", "fsync"):
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(StorageError, match=r"the disk is full: .*/out/images/m.png .* Free some space"):
        import_named("hateful-memes", tmp_path / "source", tmp_path / "out")
    assert not [*(tmp_path / "out" / "images").iterdir()]


@pytest.mark.parametrize("name", ["hateful-memes", "harmeme"])
def test_a_task_that_was_edited_stays(tmp_path, name):
    row = {"id": 1, "label": 0, "labels": ["not harmful"], "text": "x"}
    _write_lines(tmp_path / "source" / "train.jsonl", row)
    for _ in range(2):
        done = import_named(name, tmp_path / "source", tmp_path / "out")
    edited = done.task.read_text().replace('policy = "', 'policy = "Mine: ')
    done.task.write_text(edited)
    with pytest.raises(ManifestError, match="may have been edited: move it away"):
        import_named(name, tmp_path / "source", tmp_path / "out")
    assert done.task.read_text() == edited


def test_names_and_folders_that_are_not_there(tmp_path):
    with pytest.raises(ManifestError, match=r"'fhm'; expected one of \['harmeme'"):
        import_named("fhm", tmp_path, tmp_path / "out")
    for name in IMPORTERS:
        with pytest.raises(ManifestError, match="does not exist"):
            import_named(name, tmp_path / "none", tmp_path / "out")
        with pytest.raises(ManifestError, match="holds n"):
            import_named(name, tmp_path, tmp_path / "out")


def test_real_tweeteval_emotion(data_root, tmp_path):
    posts, done = _import("tweeteval-emotion", data_root / "tweeteval" / "emotion", tmp_path)
    counts = {"anger": 1560, "joy": 805, "optimism": 322, "sadness": 944}
    assert Counter(post.label for post in posts.values()) == counts
    assert Counter(post.extra["split"] for post in posts.values()) == {"train": 3257, "validation": 374}
    assert done.skipped == ()


def test_real_tweeteval_offensive(data_root, tmp_path):
    posts, done = _import("tweeteval-offensive", data_root / "tweeteval" / "offensive", tmp_path)
    assert Counter(post.label for post in posts.values()) == {"not-offensive": 8840, "offensive": 4400}
    assert done.skipped == ()


def _emotion(folder, texts, labels, mapping="0\tanger\n1\tjoy\n2\toptimism\n3\tsadness\n"):
    folder.mkdir(exist_ok=True)
    (folder / "mapping.txt").write_text(mapping)
    (folder / "train_text.txt").write_text(texts)
    (folder / "train_labels.txt").write_text(labels)
    return folder


def test_a_tweet_may_hold_what_others_take_for_a_line_end(tmp_path):
    posts, done = _import("tweeteval-emotion", _emotion(tmp_path / "e", "a\u2028b\nc\n", "3\n7\n"), tmp_path)
    assert [(post.text, post.label) for post in posts.values()] == [("a\u2028b", "sadness")]
    assert "none of" in done.skipped[0].reason


def test_line_ends_of_windows_are_no_part_of_a_tweet(tmp_path):
    posts, _ = _import("tweeteval-emotion", _emotion(tmp_path / "e", "a\r\nb\rc\r\n", "3\r\n0\r\n"), tmp_path)
    assert [post.text for post in posts.values()] == ["a", "b\rc"]
    (tmp_path / "s").mkdir()
    for label in ("positive", "negative"):
        (tmp_path / "s" / f"{label}.txt").write_bytes(f"{label} one\r\ntwo\r\n".encode())
    posts, _ = _import("sentiment140", tmp_path / "s", tmp_path / "two")
    assert sorted(post.text for post in posts.values()) == ["negative one", "positive one", "two", "two"]


def test_files_of_another_task_or_of_other_lengths_are_refused(tmp_path):
    irony = _emotion(tmp_path / "e", "a\n", "0\n", "0\tnon_irony\n1\tirony\n")
    with pytest.raises(ManifestError, match="give the folder `emotion`"):
        import_named("tweeteval-emotion", irony, tmp_path / "out")
    with pytest.raises(ManifestError, match=r"2 lines and train_labels.txt 1"):
        import_named("tweeteval-emotion", _emotion(tmp_path / "e", "a\nb\n", "0\n"), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"holds no mapping.txt"):
        import_named("tweeteval-emotion", tmp_path / "empty", tmp_path / "out")

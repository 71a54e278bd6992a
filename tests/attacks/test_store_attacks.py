"""Stores, caches and checksums that somebody else made or changed: refused in words, or bought again.

Nothing outside of them is touched, and nothing that was paid for is lost.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing, suppress

import numpy as np
import pytest

import agents.ask.cache
from agents.ask.answer_schema import AnswerSchema, ParsedAnswer
from agents.ask.cache import CachedAnswer, Note, ResponseCache, kept_row, unusable_row
from agents.client.base import Usage
from agents.errors import JudgmentError, StoreError
from backbones.base import FeatureLayout
from selftrain.agentps.vision_cache import _NAME
from selftrain.data.feature_store import FeatureStore
from selftrain.errors import CacheError, LedgerError, RunStateError, StorageError
from selftrain.review.estimates import batches_of
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import ReviewItem
from selftrain.store import checksums
from selftrain.store.run_dir import PostDigest, RunFolder

ANSWERS = pytest.mark.attack("stores: answers")
REVIEWS = pytest.mark.attack("stores: reviews")
FEATURES = pytest.mark.attack("stores: features")
FOLDERS = pytest.mark.attack("stores: run folders and checksums")

ENDLESS = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x)"


def changed(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for one in statements:
            connection.execute(*([one] if isinstance(one, str) else one))


# ---- answers ---------------------------------------------------------------------------------------------

SCHEMA = AnswerSchema(("a", "b"), "unsure")
GOOD = {
    "state": "label", "label": "a", "rationale": "x", "probabilities": {"a": 0.5, "b": 0.5},
    "perplexity": 1.5,
    "fault": "", "reasoning": "", "clause": "",
}  # fmt: skip
NOTE = Note("run", "p", "reviewer", 0, "m")
PAID = CachedAnswer(GOOD, "t", "stop", Usage(3, 0, 0, 1), 0.5)
ROW = ("answer", "text", "finish", "prompt", "cached", "image", "completion", "seconds")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(agents.ask.cache, "PATIENCE", 0.2)
    path = tmp_path / "answers.sqlite"
    cache = ResponseCache(path)
    cache.write([kept_row("k", PAID, NOTE)])
    cache.close()
    return path


def looked_up(path):
    """The answer under the key as a run takes it, or None; another one is kept beside it meanwhile."""
    cache = ResponseCache(path)
    try:
        (found,), label = cache.find([["k"]]), None
        if found is not None:
            try:
                label = ParsedAnswer.from_json(found[1].answer, SCHEMA).label
            except JudgmentError as error:
                cache.discard("k", str(error))
        cache.write([kept_row("new", PAID, NOTE)])
        assert cache.find([["new"]]) != [None]
        assert cache.spent("run").total >= 4
        return label
    finally:
        cache.close()


def with_row(path, **values):
    """Change a row, and its digest with it: a stranger can compute one too."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for name, value in values.items():
            connection.execute(f"UPDATE responses SET {name} = ?", (value,))
        row = connection.execute(f"SELECT {', '.join(ROW)} FROM responses").fetchone()
        with suppress(TypeError):  # of bytes there is none
            connection.execute("UPDATE responses SET digest = ?", (agents.ask.cache._digest("k", row),))


def answer(**changes):
    return {"answer": json.dumps(GOOD | changes)}


@ANSWERS
@pytest.mark.parametrize(
    "values",
    [
        {"text": b"\xff"}, {"finish": b"x"}, {"prompt": "many"}, {"prompt": 1.5}, {"prompt": b"\1"},
        {"seconds": "long"}, {"answer": "x"}, {"answer": "[" * 100_000}, {"answer": "[]"}, {"answer": "null"},
        {"answer": "9" * 5000}, {"answer": b"{}"}, answer(probabilities=["a", "b"]),
        answer(probabilities={"a": "x", "b": 1}), answer(probabilities={"a": None, "b": 1}),
        answer(probabilities={"a": float("nan"), "b": 1}), answer(probabilities={"a": 10**400, "b": 0}),
        answer(perplexity=10**400), answer(perplexity=[]), answer(state=[]), answer(label=[]),
        answer(label={}),
        answer(rationale=3), answer(rationale="\ud800"), answer(clause=[]), answer(reasoning=None),
    ],
    ids=str,
)  # fmt: skip
def test_a_row_that_could_not_have_been_kept_is_bought_again(values, store):
    with_row(
        store,
        **{name: v.encode() if isinstance(v, str) and "\ud800" in v else v for name, v in values.items()},
    )
    assert looked_up(store) is None


@ANSWERS
@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TRIGGER t AFTER INSERT ON responses BEGIN DELETE FROM responses; END",),
        ("CREATE TRIGGER t BEFORE INSERT ON responses BEGIN SELECT RAISE(IGNORE); END",),
        (f"CREATE TRIGGER t AFTER INSERT ON unusable BEGIN SELECT * FROM ({ENDLESS} SELECT n FROM x); END",),
        ("DROP TABLE responses", f"CREATE VIEW responses AS {ENDLESS} SELECT n AS cache_key FROM x"),
        ("ALTER TABLE responses DROP COLUMN text",),
        ("ALTER TABLE responses ADD COLUMN more TEXT NOT NULL DEFAULT 'x'",),
        ("DROP TABLE unusable",),
        ("DROP TABLE responses", "CREATE TABLE responses (cache_key, x AS (hex(zeroblob(400000000))))"),
        ("PRAGMA user_version = 99",), ("PRAGMA application_id = 3",),
    ],
    ids=lambda one: one[-1][:60],
)  # fmt: skip
def test_a_file_with_other_tables_than_ours_is_refused_before_anything_is_asked_of_it(statements, store):
    changed(store, *statements)
    before = store.read_bytes()
    with pytest.raises(StoreError, match=r"answers\.sqlite"):
        looked_up(store)
    assert store.read_bytes() == before


def locked(path):
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    return holder


@ANSWERS
@pytest.mark.parametrize(
    "put",
    [
        locked,
        lambda path: os.truncate(path, 50),
        lambda path: path.write_bytes(path.read_bytes()[:100] + os.urandom(9000)),
        lambda path: path.with_name("answers.sqlite-wal").mkdir(),
        lambda path: os.mkfifo(path.with_name("answers.sqlite-shm")),
        lambda path: path.with_name("answers.sqlite-shm").symlink_to("/etc/passwd"),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.symlink_to(path.name)),
        lambda path: (path.unlink(), path.symlink_to("/dev/full")),
    ],
    ids=["locked", "cut", "noise", "wal folder", "shm pipe", "shm link", "pipe", "ring", "device"],
)
def test_a_file_that_cannot_be_used_is_said(put, store):
    held = put(store)
    with pytest.raises(StoreError, match=r"answers\.sqlite"):
        looked_up(store)
    del held


@ANSWERS
def test_no_text_of_a_server_keeps_an_answer_from_being_kept(tmp_path):
    cache = ResponseCache(tmp_path / "a.sqlite")
    torn = PAID._replace(text="\ud800\0", finish="\0\udfff")
    cache.write([kept_row("k", torn, NOTE), unusable_row("refused: \ud83d\0", Usage(5, 0, 0, 5), 0.1, NOTE)])
    (found,) = cache.find([["k"]])
    assert found is not None
    assert (found[1].text, found[1].finish) == ("?\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}?")
    assert cache.spent("run").total == 14


# ---- reviews ---------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "review.sqlite"
    with ReviewLedger.create(path, classes=("a", "b"), budget=4, double_annotation_rate=0.5) as made:
        items = [ReviewItem(f"p{n}", "a", 0.2, 0.5, "1") for n in range(6)]
        made.add("round", items, [f"p{n}" for n in range(4)])
        first = made.next_post("ann")
        made.decide("ann", first.item.post_id, "a")
    return path


def reviewed(path):
    """What a page, an import and an estimate ask of a ledger; the ids that are handed out."""
    handed = []
    with ReviewLedger(path) as opened:
        opened.progress(), opened.decisions(), opened.all_drawn(), opened.waiting(), batches_of(opened)
        for who in ("bob", "cy", "dee"):
            if (given := opened.next_post(who)) is not None:
                handed.append(given.item.post_id)
                opened.decide(who, given.item.post_id, "b")
    return handed


def setting(name, value):
    return [("UPDATE settings SET value = ? WHERE name = ?", (value, name))]


@REVIEWS
@pytest.mark.parametrize(
    "statements",
    [
        *(
            setting(name, value)
            for name in ("classes", "budget", "lease_seconds", "double_annotation_rate", "seed", "format")
            for value in ("x", "null", "[3]", '{"a": 1}', "[" * 5000, '"abc"')
        ),
        setting("budget", "1e999"), setting("budget", "NaN"), setting("classes", '["a", 3]'),
        ["DELETE FROM settings WHERE name = 'seed'"], ["INSERT INTO settings VALUES ('allowed/x', '[]')"],
        ["INSERT INTO settings VALUES ('allowed/x', '1e400')"], ["UPDATE posts SET error = 'x'"],
        ["UPDATE posts SET inclusion = 'x'"], ["UPDATE posts SET inclusion = x'ff'"],
        ["UPDATE posts SET post_id = CAST(x'fffe' AS TEXT) WHERE place = 1"], ["PRAGMA user_version = 99"],
        ["DROP TABLE log"], ["ALTER TABLE log DROP COLUMN label"], ["CREATE TABLE makers (x)"],
        ["CREATE TRIGGER t AFTER UPDATE ON posts BEGIN DELETE FROM reviews; END"],
        ["DROP TABLE posts", f"CREATE VIEW posts AS {ENDLESS} SELECT n AS place, 1 AS open FROM x"],
    ],
    ids=lambda one: str(one[-1])[:60],
)  # fmt: skip
def test_a_ledger_that_this_program_did_not_write_is_refused(statements, ledger):
    changed(ledger, *statements)
    with pytest.raises(LedgerError, match=r"review\.sqlite"):
        reviewed(ledger)


@REVIEWS
@pytest.mark.parametrize("value", ["99999", "'x'"])
def test_a_post_that_was_not_drawn_is_handed_to_nobody(value, ledger):
    changed(ledger, f"UPDATE posts SET open = {value} WHERE place IS NULL")
    assert set(reviewed(ledger)) <= {f"p{n}" for n in range(4)}


# ---- features --------------------------------------------------------------------------------------------

LAYOUT = FeatureLayout(text_width=2, image_width=2)


def extracted(folder):
    features = FeatureStore(folder, "f" * 64, LAYOUT)
    with features.writing():
        features.append([b"k" * 32], np.ones((1, LAYOUT.width), np.float32))
    return features.read(np.array([features.index()[b"k" * 32]])).tolist()


@FEATURES
@pytest.mark.parametrize("name", ["rows.f32", "keys.bin", "meta.json", "meta.tmp", "writer.lock"])
@pytest.mark.parametrize(
    ("link", "begun"),
    [(os.symlink, False), (os.symlink, True), (os.link, False)],
    ids=["new", "begun", "hard"],
)
def test_a_cache_writes_into_no_file_of_somebody_else(link, begun, name, tmp_path):
    folder, precious = tmp_path / "cache", tmp_path / "precious"
    precious.write_text("precious")
    folder.mkdir()
    if begun:
        extracted(folder)
    (folder / name).unlink(missing_ok=True)
    link(precious, folder / name)
    with suppress(CacheError):
        assert extracted(folder) == [[1.0] * LAYOUT.width]
    assert precious.read_text() == "precious"


@FEATURES
@pytest.mark.parametrize(
    "name",
    ["evil", "1x2x3-load", "1x2x3-os", "1x-float32", "99999999999x1x1-float32", "1x2x3-float32/..", "-"],
)
def test_a_folder_among_cached_pictures_is_no_store_by_its_name(name):
    assert _NAME.fullmatch(name) is None
    assert _NAME.fullmatch("1x49x64-bfloat16") is not None


# ---- run folders and checksums ---------------------------------------------------------------------------


@FOLDERS
@pytest.mark.parametrize(
    "content",
    [
        b"null", b"[]", b"3", b'"x"', b"", b"[" * 100_000, b'{"a.json": 3}', b'{"a.json": [[1], {}]}',
        b'{"a.json": [NaN]}', b'{"\\ud800": []}', b'{"a.json": [1e999]}', b'{"a": [' + b"9" * 5000 + b"]}",
        b"\xff\xfe{}",
    ],
    ids=lambda one: one[:20].decode("latin-1"),
)  # fmt: skip
def test_odd_checksums_are_said_when_read_and_when_written(content, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / checksums.FILE).write_bytes(content)
    for use in (checksums.check, lambda file: checksums.write_json(file, {})):
        with pytest.raises(RunStateError, match=r"checksums\.json is damaged"):
            use(tmp_path / "a.json")


@FOLDERS
@pytest.mark.parametrize(
    "name", [".lock", "recipe.toml", "posts.jsonl", "environment.json", "grown.jsonl", "best"]
)
@pytest.mark.parametrize(
    "put",
    [
        lambda path, precious: path.symlink_to(precious), lambda path, precious: os.link(precious, path),
        lambda path, precious: path.symlink_to(precious.with_name("new")),
        lambda path, _: os.mkfifo(path), lambda path, _: (path / "x").mkdir(parents=True),
    ],
    ids=["link", "hard link", "dangling link", "pipe", "folder"],
)  # fmt: skip
def test_a_run_writes_into_nothing_that_lies_in_its_place(put, name, tmp_path):
    precious, folder = tmp_path / "precious", RunFolder(tmp_path / "run")
    precious.write_text("precious")
    folder.path.mkdir()
    put(folder.path / name, precious)
    (folder.path / ".x.tmp").mkdir()  # no file of ours
    with suppress(RunStateError, StorageError), folder.locked():
        folder.begin({"a": 1}, {"identity": {}}, [PostDigest("p", "pool", "x")])
        folder.publish(0, [])
    assert precious.read_text() == "precious"
    assert not precious.with_name("new").exists()

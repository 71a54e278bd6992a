"""The store of answers: killed at any moment, shared by several processes, damaged, of another version."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from vlm_helpers import keep_for_nobody

from agents.ask.cache import (
    CachedAnswer,
    Keeper,
    Note,
    ResponseCache,
    kept_row,
    switch_to_write_ahead,
    unusable_row,
)
from agents.client.base import Usage
from agents.errors import StoreError

CHECKOUT = Path(__file__).parents[3]
NOTE = Note("run", "post", "reviewer", 0, "model")


def paid(text="text", prompt=10):
    return CachedAnswer({"label": "x", "fault": ""}, text, "stop", Usage(prompt, 4, 2, 3), 0.5)


def kept(store, *keys):
    """Return the first of the keys that has an answer, with it."""
    return store.find([keys])[0]


def test_what_is_put_is_got_back(tmp_path):
    store = ResponseCache(tmp_path / "deep" / "answers.sqlite")
    assert kept(store, "a") is None
    store.write([kept_row("a", paid("\u2028 \U0001f600 '; DROP TABLE answers"), NOTE)])
    store.close()
    assert kept(ResponseCache(tmp_path / "deep" / "answers.sqlite"), "a")[1] == paid(
        "\u2028 \U0001f600 '; DROP TABLE answers"
    )


def test_the_first_answer_under_a_key_stays(tmp_path):
    store = ResponseCache(tmp_path / "a.sqlite")
    store.write([kept_row("a", paid("first"), NOTE)])
    store.write([kept_row("a", paid("second"), NOTE)])
    assert kept(store, "a")[1].text == "first"


def test_what_a_run_has_spent_is_told_by_run(tmp_path):
    store = ResponseCache(tmp_path / "a.sqlite")
    assert store.spent("run") == Usage()
    for place in "abc":
        store.write([kept_row(place, paid(prompt=100), NOTE)])
    store.write([kept_row("d", paid(), NOTE._replace(run="other"))])
    assert store.spent("run") == Usage(300, 12, 6, 9)


WRITER = """
import os, signal, sys
from pathlib import Path
from agents.client.base import Usage
from agents.ask.cache import ResponseCache, Note, CachedAnswer, kept_row
store = ResponseCache(Path(sys.argv[1]))
for i in range(int(sys.argv[2])):
    note, paid = Note("run", "", "", 0, ""), CachedAnswer({}, str(i), "stop", Usage(1, 0, 0, 1), 0)
    store.write([kept_row(f"{sys.argv[3]}{i}", paid, note)])
    print(i, flush=True)
if sys.argv[4] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def writer(path, count, name, end):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(count), name, end],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_process_killed_after_an_answer_has_kept_it(tmp_path):
    child = writer(tmp_path / "a.sqlite", 20, "k", "kill")
    told, _ = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    store = ResponseCache(tmp_path / "a.sqlite")
    assert len(told.split()) == 20
    assert [kept(store, f"k{i}")[1].text for i in range(20)] == told.split()


def test_several_processes_share_a_store(tmp_path):
    children = [writer(tmp_path / "a.sqlite", 30, name, "end") for name in "xyz"]
    assert [child.communicate(timeout=60)[0].split()[-1] for child in children] == ["29"] * 3
    assert ResponseCache(tmp_path / "a.sqlite").spent("run") == Usage(90, 0, 0, 90)


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "a.sqlite").write_text("not a database at all " * 100)
    with pytest.raises(StoreError, match=r"a\.sqlite"):
        ResponseCache(tmp_path / "a.sqlite")
    assert (tmp_path / "a.sqlite").read_text().startswith("not a database")


def test_another_program_s_file_is_refused_and_stays_as_it_was(tmp_path):
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as file, file:
        file.execute("CREATE TABLE places (url TEXT)")
    before = (tmp_path / "a.sqlite").read_bytes()
    with pytest.raises(StoreError, match="another program"):
        ResponseCache(tmp_path / "a.sqlite")
    assert (tmp_path / "a.sqlite").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.sqlite"]


def test_a_pipe_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "a.sqlite")
    with pytest.raises(StoreError, match="is no file"):
        ResponseCache(tmp_path / "a.sqlite")


@pytest.mark.parametrize("column", ["answer", "text", "finish", "prompt", "completion"])
def test_an_answer_that_was_damaged_is_none_and_what_it_cost_stays(tmp_path, column, caplog):
    store = ResponseCache(tmp_path / "a.sqlite")
    store.write([kept_row("a", paid(), NOTE)])
    store.write([unusable_row("cut off", Usage(5, 0, 0, 5), 0.1, NOTE)])
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as file, file:
        file.execute(f"UPDATE responses SET {column} = CAST({column} AS TEXT) || '1'")
    assert kept(store, "a") is None
    assert "cannot be used" in caplog.text
    assert store.spent("run").total >= 23
    store.write([kept_row("a", paid("again"), NOTE)])
    assert kept(store, "a")[1].text == "again"


def test_a_store_of_another_version_is_refused(tmp_path):
    ResponseCache(tmp_path / "a.sqlite").close()
    with sqlite3.connect(tmp_path / "a.sqlite") as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreError, match="version 7"):
        ResponseCache(tmp_path / "a.sqlite")


def test_a_folder_in_the_way_is_refused(tmp_path):
    with pytest.raises(StoreError):
        ResponseCache(tmp_path)


class Switching:
    """A connection to a file that others switch: locked at once, so many times."""

    def __init__(self, times, message="database is locked"):
        self.times, self.message, self.asked = times, message, 0

    def execute(self, statement):
        assert statement == "PRAGMA journal_mode = WAL"
        self.asked += 1
        if self.asked <= self.times:
            raise sqlite3.OperationalError(self.message)


def test_a_file_that_others_switch_to_wal_is_waited_for():
    connection = Switching(3)
    switch_to_write_ahead(connection)
    assert connection.asked == 4


def test_a_file_that_stays_locked_or_cannot_be_switched_is_an_error(monkeypatch):
    readonly = Switching(9, "attempt to write a readonly database")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        switch_to_write_ahead(readonly)
    assert readonly.asked == 1
    monkeypatch.setattr("agents.ask.cache.PATIENCE", 0.05)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        switch_to_write_ahead(Switching(10**6))


async def test_what_arrives_together_is_written_together_and_given_out_when_it_is_on_the_disk(tmp_path):
    store = ResponseCache(tmp_path / "a.sqlite")
    groups, write = [], store.write

    def counting(rows):
        groups.append(len(rows))
        write(rows)

    store.write = counting

    async def one(keeper, name):
        await keeper.keep(kept_row(name, paid(name), NOTE))
        with closing(sqlite3.connect(tmp_path / "a.sqlite")) as other:  # as another process sees it
            assert other.execute("SELECT text FROM responses WHERE cache_key = ?", (name,)).fetchone()
        return await keeper.find(["none", name])

    keeper = Keeper(store)
    found = await asyncio.gather(*(one(keeper, f"k{i}") for i in range(40)))
    assert [(key, answer.text) for key, answer in found] == [(f"k{i}", f"k{i}") for i in range(40)]
    assert sum(groups) == 40
    assert len(groups) < 10


async def test_one_bad_row_takes_no_other_answer_along(tmp_path):
    store = ResponseCache(tmp_path / "a.sqlite")

    keeper = Keeper(store)
    bad = paid("z")._replace(usage=Usage(1 << 70))
    rows = [kept_row(name, one, NOTE) for name, one in (("a", paid("x")), ("b", bad), ("c", paid("y")))]
    ends = await asyncio.gather(*map(keeper.keep, rows), return_exceptions=True)
    assert [type(one) for one in ends] == [type(None), StoreError, type(None)]
    assert [kept(store, key) is not None for key in "abc"] == [True, False, True]


def test_an_answer_whose_asker_was_cancelled_is_kept(tmp_path):
    store = ResponseCache(tmp_path / "a.sqlite")
    keep_for_nobody(store, [kept_row(name, paid(), NOTE) for name in "ab"])
    assert [kept(store, key) is not None for key in "ab"] == [True, True]


def test_a_file_that_another_process_holds_is_told_as_that(tmp_path, monkeypatch):
    monkeypatch.setattr("agents.ask.cache.PATIENCE", 0.05)
    ResponseCache(tmp_path / "a.sqlite").close()
    store = ResponseCache(tmp_path / "a.sqlite")
    with closing(sqlite3.connect(tmp_path / "a.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"database is locked.*another process has held the file"):
            store.write([kept_row("a", paid(), NOTE)])
    store.write([kept_row("a", paid(), NOTE)])
    store.close()


@pytest.mark.parametrize("damage", [lambda data: b"hello " * 1000, lambda data: data[: len(data) // 2]])
def test_a_file_that_is_damaged_throughout_is_told_as_that(tmp_path, damage):
    file = tmp_path / "a.sqlite"
    store = ResponseCache(file)
    store.write([kept_row(str(n), paid("t" * 500), NOTE) for n in range(200)])
    store.close()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(StoreError, match="it is damaged, or no file of this program: take it from a copy"):
        ResponseCache(file)

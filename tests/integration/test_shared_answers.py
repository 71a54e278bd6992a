"""Answers that several processes share in a real PostgreSQL: none paid twice, a cap over all of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from vlm_helpers import MemoryBackend, keep_for_nobody, said

from agents.ask.cache import CachedAnswer, Note, kept_row, unusable_row
from agents.ask.postgres_cache import PostgresCache
from agents.client.base import Usage
from agents.errors import StoreError
from selftrain.cli import main
from selftrain.data.drawn import draw_posts
from selftrain.data.task import load_task

psycopg = pytest.importorskip("psycopg", reason="needs the development tools: pip install .[dev]")
pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1]
NOTE = Note("run", "post", "reviewer", 0, "model")
A_CALL = 120
"""Tokens that a call of `buying_child` costs."""


class Server:
    """A PostgreSQL of our own in a folder of its own, reached by a socket in there."""

    def __init__(self, binaries: Path, home: Path):
        self.binaries, self.home = binaries, home
        self.url = f"postgresql://postgres@/postgres?host={home}"

    def run(self, *command):
        # PostgreSQL refuses to be root's
        other = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        subprocess.run(
            [self.binaries / command[0], *command[1:]], check=True, cwd=self.home, timeout=60, **other,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def control(self, what):
        options = f"-c listen_addresses= -c unix_socket_directories={self.home}"
        started = ("-o", options, "-l", self.home / "log") if what != "stop" else ()
        self.run("pg_ctl", "-D", self.home / "data", "-w", "-m", "fast", *started, what)


@pytest.fixture(scope="module")
def server():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        if os.environ.get("CI"):
            pytest.fail("no PostgreSQL: `make test` installs it")
        pytest.skip("no PostgreSQL (`make test` installs it)")
    home = Path(tempfile.mkdtemp(prefix="pg-"))  # paths of sockets are short
    if os.getuid() == 0:
        shutil.chown(home, "postgres")
    running = Server(found[-1], home)
    try:
        running.run("initdb", "-D", home / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        running.control("start")
        yield running
        running.control("stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def url(server):
    """An empty database."""
    with closing(psycopg.connect(server.url, autocommit=True)) as connection:
        connection.execute("DROP SCHEMA IF EXISTS selftrain_3 CASCADE")
    return server.url


def paid(text="text", prompt=10):
    return CachedAnswer({"label": "x", "fault": ""}, text, "stop", Usage(prompt, 4, 2, 3), 0.1)


def buying(url, calls, cap="", kill=""):
    return subprocess.Popen(
        [sys.executable, TESTS / "integration" / "buying_child.py", url, calls, str(cap), str(kill)],
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(*children):
    found = [json.loads(child.communicate(timeout=120)[0]) for child in children]
    assert [child.returncode for child in children] == [0] * len(children)
    return found


def test_what_is_put_is_got_back_as_from_a_file(url):
    text = "\u2028 \U0001f600 '; DROP TABLE responses; %s ? \\"
    with closing(PostgresCache(url)) as store:
        store.write([kept_row("a", paid(text), NOTE)])
        store.write([kept_row("a", paid("second"), NOTE)])
        store.write([kept_row("nul", paid("a\0b"), NOTE)])
        store.write([unusable_row("cut off", Usage(5, 0, 0, 5), 0.1, NOTE)])
    with closing(PostgresCache(url)) as store:
        assert store.find([["none", "a"]])[0] == ("a", paid(text))
        assert store.find([["nul"]])[0][1].text == "a\ufffdb"
        assert store.spent("run") == Usage(35, 12, 6, 14)  # the second answer was paid for too
        assert store.spent("other") == Usage()
        with closing(psycopg.connect(url, autocommit=True)) as other:
            other.execute("UPDATE selftrain_3.responses SET text = 'else' WHERE cache_key = 'a'")
        assert store.find([["a"]])[0] is None
        assert store.spent("run") == Usage(35, 12, 6, 14)


def test_processes_buy_no_answer_twice(url, tmp_path):
    found = ended(*(buying(url, tmp_path / "calls") for _ in range(3)))
    calls = (tmp_path / "calls").read_text().split()
    assert sorted(calls) == sorted(f"p{i}" for i in range(60))
    assert [one["end"] for one in found] == ["done"] * 3
    assert sum(one["calls"] for one in found) == 60
    with closing(PostgresCache(url)) as store:
        assert store.spent("run").total == 60 * A_CALL


def test_a_cap_holds_over_all_processes(url, tmp_path):
    with closing(PostgresCache(url)) as store:  # so that a prompt's tokens are known
        store.write([kept_row("before", CachedAnswer({}, "", "stop", Usage(100, 0, 0, 20), 0.1), NOTE)])
    cap = 33 * A_CALL + 7
    found = ended(*(buying(url, tmp_path / "calls", cap) for _ in range(3)))
    assert all(f"of at most {cap:,} are spent" in one["end"] for one in found)
    with closing(PostgresCache(url)) as store:
        spent = store.spent("run").total
        assert store.claim("run", None, {"another": 1}) == {"another": True}
    assert spent == 33 * A_CALL == A_CALL * (1 + len((tmp_path / "calls").read_text().split()))


def test_what_a_killed_process_was_buying_others_buy(url, tmp_path):
    killed = buying(url, tmp_path / "calls", kill=9)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (found,) = ended(buying(url, tmp_path / "others"))
    assert found["end"] == "done"
    with closing(psycopg.connect(url)) as connection:
        (left,) = connection.execute("SELECT COUNT(*) FROM selftrain_3.claims").fetchone()
        (kept,) = connection.execute("SELECT COUNT(*) FROM selftrain_3.responses").fetchone()
    assert (left, kept) == (0, 60)
    before, after = ((tmp_path / name).read_text().split() for name in ("calls", "others"))
    # none that was written; of those under way no more than the process had at once
    assert len(set(before) & set(after)) <= 6
    assert found["stored"] == 60 - len(after)


def test_a_server_that_is_started_anew_is_waited_for(url, server):
    with closing(PostgresCache(url)) as store:
        assert store.claim("run", None, {"a": 9}) == {"a": True}
        server.control("restart")
        store.write([kept_row("a", paid(), NOTE)])
        assert store.find([["a"]])[0] == ("a", paid())
        server.control("restart")
        assert store.claim("run", None, {"a": 9, "b": 9}) == {"a": False, "b": True}
        with closing(PostgresCache(url)) as other:  # the claim outlived the connection it was made on
            assert other.claim("run", None, {"b": 9}) == {"b": False}


def test_an_answer_whose_asker_was_cancelled_is_kept_here_too(url):
    with closing(PostgresCache(url)) as store:
        keep_for_nobody(store, [kept_row(name, paid(), NOTE) for name in "ab"])
        assert [store.find([[key]])[0] is not None for key in "ab"] == [True, True]


def test_a_run_in_another_folder_pays_for_nothing_that_the_database_has(url, tmp_path, monkeypatch):
    draw_posts(tmp_path / "data", 60)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'seed = 1\n[data]\nmanifest = "data/manifest.jsonl"\ntask = "data/task.toml"\ntrain_share = 0.5\n'
        "validation_share = 0.3\ntest_share = 0.2\nlabelled = 12\n[backbone]\ncache = 'cache'\n"
        "[classifier]\nepochs = 5\n[selection]\nk = 4\n[rounds]\nmax = 1\n"
        '[agents]\nkind = "vlm"\non_near_chance = "continue"\n[vlm]\nservers = ["http://127.0.0.1:9"]\n'
    )
    first = load_task(tmp_path / "data" / "task.toml").names[0]
    backends = []
    for name in ("here", "there"):
        backends.append(MemoryBackend(lambda request: said(first)))
        monkeypatch.setattr("selftrain.panels.build_backend", lambda model: backends[-1])
        out = tmp_path / name / "run"
        assert main(["run", str(recipe), "--out", str(out), "--set", f"vlm.database={url}"]) == 0
        assert "database" in (out / "recipe.toml").read_text()
        assert not (tmp_path / name / "responses.sqlite").exists()
    assert [bool(one.requests) for one in backends] == [True, False]


def test_a_server_that_is_not_there_is_named_with_what_to_do(tmp_path):
    with pytest.raises(StoreError, match=r"cannot be opened(.|\n)*~/\.pgpass"):
        PostgresCache(f"postgresql://nobody@/postgres?host={tmp_path}")

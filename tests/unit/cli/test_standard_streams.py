"""Standard streams that are closed, full, or read by nobody any more."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

import pytest

FULL = "error: standard output could not be written: No space left on device. Send it where there is room"
COMMANDS = {
    "help": "--help",
    "version": "--version",
    "help of a command": "show --help",
    "show": "show RUN",
    "verdicts": "show RUN --round 1",
    "verdicts as JSON": "show RUN --round 1 --json",
    "compare": "compare RUN RUN",
    "status": "status RUN --json",
    "check": "data check POSTS",
    "tasks": "data tasks",
    "a task": "data tasks hateful-memes",
    "predict": "predict RUN POSTS --out -",
}


@pytest.fixture
def at_a_shell(small_run, tmp_path):
    """Run a command with its streams as a shell redirects them."""
    posts = tmp_path / "posts.jsonl"
    posts.write_text('{"id": "a", "text": "two tickets for tonight"}\n')

    def run(words, streams, before="", **environment):
        words = words.replace("RUN", shlex.quote(str(small_run))).replace("POSTS", shlex.quote(str(posts)))
        return subprocess.run(
            ["bash", "-c", f"{before}{shlex.quote(sys.executable)} -m selftrain {words} {streams}"],
            capture_output=True, text=True, check=False, env=os.environ | environment,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_full_output_is_one_line(words, at_a_shell):
    done = at_a_shell(words, "> /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith(FULL)
    assert done.stderr.count("\n") == 1


def test_an_unbuffered_output_that_is_full_is_one_line(at_a_shell):
    done = at_a_shell("data tasks", "> /dev/full", PYTHONUNBUFFERED="1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(FULL)


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_reader_that_goes_away_is_one_status(words, at_a_shell):
    # `true` reads nothing: the pipe is broken before the first line is flushed
    done = at_a_shell(f"{words}; echo $? >&2) | true", "", before="(sleep 0.2; ")
    assert done.stderr == "141\n"


def test_streams_that_are_closed_go_nowhere_and_the_work_is_done(at_a_shell, tmp_path):
    out = tmp_path / "labels.jsonl"
    for streams in (">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        for words in ("data check POSTS", f"predict RUN POSTS --out {shlex.quote(str(out))}", "--help"):
            done = at_a_shell(words, streams)
            assert (done.returncode, done.stderr) == (0, ""), (streams, words)
        assert '"id": "a"' in out.read_text()
        out.unlink()


def test_a_file_does_not_take_the_number_of_a_closed_stream(at_a_shell, tmp_path):
    task = tmp_path / "task.toml"
    done = at_a_shell(f"data tasks hateful-memes --out {shlex.quote(str(task))}", "<&- >&- 2>&-")
    assert done.returncode == 0
    assert task.read_text().startswith("#") or "name" in task.read_text()
    assert "classes, " not in task.read_text()


INTERRUPTED = """
import signal, time
from selftrain.cli.standard_streams import whole
with whole():
    for number in range(300):
        try:
            print(number, flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            continue
"""


def test_what_was_written_when_a_signal_comes_is_not_written_again():
    """Each line is answered by Ctrl-C, as soon as it can be read."""
    words = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            process.send_signal(signal.SIGINT)
    assert lines == [f"{number}\n" for number in range(300)]

"""A server as a process, with a program in vLLM's place: when it can serve, how it ends, what it leaves."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agents.errors import ServerLaunchError
from agents.vllm.command import Command, free_port
from agents.vllm.launch import Ready, Server, check_port, listens, serving, start

FAKE = Path(__file__).parents[2] / "serving_fake.py"
CHECKOUT = FAKE.parents[1]


@pytest.fixture(autouse=True)
def _logs_of_failures_stay_here(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def command(folder, behaviour, *, images=None, key="", port=0):
    port = port or free_port()
    return Command(
        argv=(sys.executable, str(FAKE), behaviour, str(port), str(folder / "notes")),
        environment={"DO_NOT_TRACK": "1"}, host="127.0.0.1", port=port, models=("fake",), images=images,
        server="vllm 0.32.0", api_key=key,
    )  # fmt: skip


def notes(folder):
    return [json.loads(line) for line in (folder / "notes").read_text().splitlines()]


def pids(folder):
    return notes(folder)[0]["pids"]


def gone(pid, seconds=30.0):
    """Whether a process has ended; waits for the event of its end."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def test_it_is_ready_once_it_has_answered_about_an_image(tmp_path):
    told, log = [], tmp_path / "log"
    with serving(command(tmp_path, "good", images=4), log=log, report=told.append) as (server, ready):
        assert ready == Ready(server.command.endpoint, "fake", "vllm 0.32.0", 4096, 4)
        assert server.status is None
        process = pids(tmp_path)[0]
        os.kill(process, 0)
    assert gone(process)
    [question] = [one["body"] for one in notes(tmp_path) if "path" in one]
    assert question["model"] == "fake"
    assert question["response_format"]["type"] == "json_schema"
    assert question["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert len(told) == 3
    assert str(log) in told[0]


@pytest.mark.parametrize(
    ("behaviour", "images", "expected", "asked"),
    [("text only", None, 0, 2), ("good", None, 16, 1), ("text only", 0, 0, 1)],
)
def test_how_many_images_are_found_out_or_stated(tmp_path, behaviour, images, expected, asked):
    with serving(command(tmp_path, behaviour, images=images)) as (_, ready):
        assert ready.images == expected
    assert sum("path" in one for one in notes(tmp_path)) == asked


def test_a_server_that_must_take_images_and_does_not_is_an_error(tmp_path):
    with (
        pytest.raises(
            ServerLaunchError, match=r"2 images a prompt.*HTTP 400, fake is not a multimodal model"
        ),
        serving(command(tmp_path, "text only", images=2)),
    ):
        pytest.fail("it is not ready")
    assert gone(pids(tmp_path)[0])


def test_a_server_that_does_not_keep_to_the_schema_is_an_error(tmp_path):
    with (
        pytest.raises(ServerLaunchError, match=r"not JSON: 'I think so\.'"),
        serving(command(tmp_path, "free")),
    ):
        pytest.fail("it is not ready")


def test_the_key_travels_in_the_environment_and_is_shown(tmp_path):
    with serving(command(tmp_path, "good", key="a-secret")) as (server, ready):
        assert ready.context == 4096
        line = Path(f"/proc/{pids(tmp_path)[0]}/cmdline").read_bytes()
        assert b"a-secret" not in line
        assert "a-secret" not in repr(server.command)
    assert notes(tmp_path)[0]["key"] == "a-secret"


def test_an_early_death_ends_with_the_log_of_this_server_and_advice(tmp_path):
    log = tmp_path / "log"
    log.write_text("OSError: of an earlier server\n")
    with pytest.raises(ServerLaunchError) as caught, serving(command(tmp_path, "dies"), log=log):
        pytest.fail("it is not ready")
    message = str(caught.value)
    assert "ended before it could serve with exit status 3" in message
    assert "ValueError: Available memory on node 0" in message
    assert "advice: memory is short" in message
    assert "earlier server" not in message
    assert "root cause" not in message


def test_a_temporary_log_stays_only_where_something_went_wrong(tmp_path):
    with serving(command(tmp_path, "good")) as (server, _):
        assert server.log.exists()
    assert not server.log.exists()
    with pytest.raises(ServerLaunchError), serving(command(tmp_path, "dies")):
        pytest.fail("it is not ready")
    assert len(list(tmp_path.glob("selftrain-vllm-*.log"))) == 1


def test_an_end_at_the_first_question_is_told_as_an_end(tmp_path):
    with (
        pytest.raises(ServerLaunchError, match="ended before it could serve with exit status 7"),
        serving(command(tmp_path, "breaks")),
    ):
        pytest.fail("it is not ready")


def test_waiting_has_an_end(tmp_path):
    log = tmp_path / "log"
    server = start(command(tmp_path, "deaf"), log)
    try:
        while not log.read_text().strip():  # it has begun to think
            assert server.status is None
        with pytest.raises(
            ServerLaunchError,
            match=r"not answer /health, nor make progress, for 0.01 s; its log.*\n  thinking",
        ):
            server.wait_until_ready(0.01)
        assert server.status is None
    finally:
        server.stop()
    assert gone(pids(tmp_path)[0])


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path):
    with serving(command(tmp_path, "good")) as (server, _):
        port = server.command.port
        with pytest.raises(
            ServerLaunchError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"
        ):
            start(command(tmp_path, "good", port=port), tmp_path / "log")
    check_port("127.0.0.1", port)


def test_another_server_that_answers_at_our_address_is_not_taken_for_ours(tmp_path):
    """Two that start together can both bind the port; only one of them listens."""
    (tmp_path / "other").mkdir()
    with serving(command(tmp_path, "good")) as (other, _):
        ours = start(command(tmp_path / "other", "deaf"), tmp_path / "log")
        try:
            answering = Server(other.command, ours.log, ours._process, 0, 1.0)
            with pytest.raises(ServerLaunchError, match="another server answers at http://127"):
                answering.wait_until_ready(10)
        finally:
            ours.stop()


def test_who_listens(tmp_path):
    with serving(command(tmp_path, "good")) as (server, _):
        assert listens(server.pid, server.command.port) is True
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as another:
            assert listens(another.pid, server.command.port) is False
            another.stdin.close()
    assert listens(server.pid, server.command.port) is None


def test_what_ignores_sigterm_is_killed_with_its_children(tmp_path):
    log = tmp_path / "log"
    with serving(command(tmp_path, "stubborn"), log=log, grace=0.2) as (server, _):
        assert len(pids(tmp_path)) == 2
    assert server.status == 128 + signal.SIGKILL
    assert all(gone(pid) for pid in pids(tmp_path))
    assert "supervisor: still there 0.2 s after SIGTERM" in log.read_text()


def test_children_of_a_server_that_is_killed_do_not_live_on(tmp_path):
    with serving(command(tmp_path, "stubborn"), grace=0.2) as (server, _):
        os.kill(pids(tmp_path)[0], signal.SIGKILL)
        with pytest.raises(ServerLaunchError, match="ended by itself with exit status 137"):
            server.wait()
        assert all(gone(pid) for pid in pids(tmp_path))


@pytest.mark.parametrize("killed", ["parent", "supervisor"])
def test_nothing_is_left_when_the_parent_or_the_supervisor_is_killed(tmp_path, killed):
    program = (
        "import sys, signal; sys.path[:0] = sys.argv[1:4]\n"
        "from pathlib import Path; from test_serving_launch import command, serving\n"
        "with serving(command(Path(sys.argv[4]), sys.argv[5]), grace=0.2) as (server, _):\n"
        "    print(server.pid, flush=True); signal.pause()\n"
    )
    # only the supervisor can kill what ignores SIGTERM, so where it is killed itself SIGTERM must be enough
    behaviour = "stubborn" if killed == "parent" else "good"
    argv = [sys.executable, "-c", program, str(Path(__file__).parent), str(FAKE.parent), str(CHECKOUT)]
    argv += [str(tmp_path), behaviour]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        try:
            supervisor = int(parent.stdout.readline())
            os.kill(parent.pid if killed == "parent" else supervisor, signal.SIGKILL)
            assert all(gone(pid) for pid in [*pids(tmp_path), supervisor])
        finally:
            parent.kill()


def test_a_program_that_cannot_be_started_is_told(tmp_path):
    missing = tmp_path / "python"
    port = free_port()
    nothing = Command((str(missing),), {}, "127.0.0.1", port, ("fake",), None, "vllm 0.32.0")
    with (
        pytest.raises(
            ServerLaunchError, match=rf"exit status 127.*\n  supervisor: {missing} cannot be started"
        ),
        serving(nothing),
    ):
        pytest.fail("it is not ready")

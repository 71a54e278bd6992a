"""The rooms: who may import whom, no circles, and a light `import selftrain`."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
LEAVES = ("agents", "losses", "backbones")
PACKAGES = ("selftrain", *LEAVES)


def module_files(root):
    """Dotted name -> file, for every module of the four packages under `root`."""
    files = {}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


def imported_names(tree, module, is_package):
    """Every dotted name that `tree` imports, wherever it stands; (name, at module level or not)."""

    def visit(node, top):
        for child in ast.iter_child_nodes(node):
            inner = top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inner = False  # never executed, so it closes no circle
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    above = module.split(".") if is_package else module.split(".")[:-1]
                    above = above[: len(above) - child.level + 1]
                    base = ".".join([*above, *filter(None, [child.module])])
                # `from package import name` may import the module package.name, or take a name of package
                yield from ((f"{base}.{alias.name}", top) for alias in child.names)
            yield from visit(child, inner)

    yield from visit(tree, True)


def read_imports(root):
    """Module -> set of (imported dotted name, at module level)."""
    return {
        module: set(imported_names(ast.parse(file.read_text()), module, file.name == "__init__.py"))
        for module, file in module_files(root).items()
    }


def forbidden(imports):
    """Imports of one leaf by another, or of selftrain by a leaf, also inside functions."""
    return sorted(
        f"{module} imports {name}"
        for module, names in imports.items()
        for name, _ in names
        if module.split(".")[0] in LEAVES
        and name.split(".")[0] in PACKAGES
        and name.split(".")[0] != module.split(".")[0]
    )


def circle(imports):
    """One circle of module-level imports as a list of modules, or None."""

    def target(name):
        while name and name not in imports:
            name = name.rpartition(".")[0]
        return name

    graph = {
        module: {target(name) for name, top in names if top} - {module, ""}
        for module, names in imports.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_leaves_import_neither_each_other_nor_selftrain():
    assert forbidden(read_imports(CHECKOUT)) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(read_imports(CHECKOUT)) is None


@pytest.fixture
def small_rooms(tmp_path):
    for package in PACKAGES:
        (tmp_path / package / "inner").mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "inner" / "__init__.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    "line",
    ["import agents.roles", "from selftrain import data", "def f():\n    from agents.roles import Role"],
)
def test_the_reader_sees_an_import_out_of_a_leaf(small_rooms, line):
    (small_rooms / "losses" / "pnu.py").write_text(line)
    assert len(forbidden(read_imports(small_rooms))) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("import selftrain.b", "from selftrain.a import x"),
        ("from selftrain import b", "from . import a"),
        ("from .b import x", "try:\n    from .a import y\nexcept ImportError:\n    pass"),
    ],
)
def test_the_reader_sees_a_circle(small_rooms, first, second):
    (small_rooms / "selftrain" / "a.py").write_text(first)
    (small_rooms / "selftrain" / "b.py").write_text(second)
    assert set(circle(read_imports(small_rooms))) == {"selftrain.a", "selftrain.b"}


@pytest.mark.parametrize(
    "second",
    [
        "def f():\n    from .a import y",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import y",
    ],
)
def test_an_import_that_does_not_run_at_import_closes_no_circle(small_rooms, second):
    (small_rooms / "selftrain" / "a.py").write_text("from .b import x")
    (small_rooms / "selftrain" / "b.py").write_text(second)
    assert circle(read_imports(small_rooms)) is None


def test_import_selftrain_pulls_in_nothing_heavy(tmp_path):
    program = (
        "import sys, selftrain; print(sorted({'torch', 'vllm', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
        env={"PYTHONPATH": str(CHECKOUT), "PATH": ""},
    )  # fmt: skip
    assert result.stdout.strip() == "[]"

"""The rules of the house. What breaks one today stands in `allowed.txt`; that list only ever gets shorter."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from structure import (
    CHECKOUT,
    LEAVES,
    PACKAGES,
    in_circles,
    module_graph,
    module_names,
    own,
    public_classes,
    read_modules,
    rising,
    room,
    room_graph,
)

HEAVY = frozenset(
    {
        *(
            "torch",
            "torchvision",
            "transformers",
            "peft",
            "accelerate",
            "safetensors",
            "open_clip",
            "timm",
            "gguf",
        ),
        *(
            "sklearn",
            "scipy",
            "pandas",
            "pyarrow",
            "matplotlib",
            "PIL",
            "imagehash",
            "datasketch",
            "av",
            "jinja2",
            "tqdm",
        ),
        *(
            "gguf",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "vllm",
            "ray",
            "psycopg",
            "boto3",
            "botocore",
            "aiohttp",
            "mlflow",
            "tensorboard",
            "google",
        ),
    }
)
"""Packages that a function may import: they take long to load, or some installations do without them."""

SAME_NAME = frozenset({"base", "errors", "recipe"})
"""Modules that every package may have."""

DECLARED_ONCE = ("Json", "FloatArray", "IntArray", "LabelArray", "Interval")

RECORD_ROOMS = frozenset({"loop", "state", "rounds", "runs", "build", "review", "report", "cli"})
"""Where rounds, verdicts and judgments pass through as typed values."""


@pytest.fixture(scope="module")
def modules():
    return read_modules()


@pytest.fixture(scope="module")
def allowed():
    """Rule -> what may still break it, one line each: ``rule: what``."""
    lines = (Path(__file__).parent / "allowed.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(": ", 1) for line in lines if line]
    return {rule: {what for name, what in pairs if name == rule} for rule in {name for name, _ in pairs}}


def hold(found, rule, allowed):
    """Everything found is on the list, and nothing is on the list that is not found."""
    listed = allowed.get(rule, set())
    lines = [f"{rule}: {what}" for what in sorted(found)]
    assert sorted(found - listed) == [], "breaks the rule:\n" + "\n".join(lines)
    assert sorted(listed - found) == [], "is mended: take it off allowed.txt"


# ---- who imports whom ---------------------------------------------------------------------------------


def test_leaves_import_neither_each_other_nor_selftrain(modules):
    crossing = {
        f"{name} imports {one.name}"
        for name, module in modules.items()
        for one in module.imports
        if room(name) in LEAVES and one.name.split(".")[0] in {*PACKAGES} - {room(name)}
    }
    assert crossing == set()


def test_nothing_imports_from_a_higher_floor(modules, allowed):
    hold(set(rising(modules)), "floors", allowed)


def test_no_modules_import_each_other_in_a_circle(modules, allowed):
    hold(in_circles(module_graph(modules)), "circle of modules", allowed)


@pytest.mark.parametrize("inner", [False, True], ids=["rooms", "folders"])
def test_no_rooms_import_each_other_in_a_circle(modules, allowed, inner):
    hold(
        in_circles(room_graph(modules, inner=inner)),
        "circle of folders" if inner else "circle of rooms",
        allowed,
    )


def test_only_heavy_packages_are_imported_inside_functions(modules, allowed):
    found = {
        f"{name} imports {one.name.split('.')[0]}"
        for name, module in modules.items()
        for one in module.imports
        if one.inside and one.name.split(".")[0] not in HEAVY
    }
    hold(found, "inside functions", allowed)


# ---- names and places ---------------------------------------------------------------------------------


def test_the_root_has_at_most_ten_modules():
    files = {f.stem for f in (CHECKOUT / "selftrain").glob("*.py")} - {"__init__", "__main__"}
    assert len(files) <= 10, sorted(files)


def test_no_public_class_has_the_name_of_another(modules, allowed):
    found = {name for name, where in public_classes(modules).items() if len(where) > 1}
    hold(found, "class names", allowed)


def test_no_module_has_the_name_of_another(modules, allowed):
    found = {name for name, where in module_names(modules).items() if len(where) > 1} - SAME_NAME
    hold(found, "module names", allowed)


def test_what_all_share_is_declared_once(modules, allowed):
    found = Counter(
        target
        for module in modules.values()
        for node in module.tree.body
        for target in declared(node)
        if target in DECLARED_ONCE
    )
    hold({f"{name} {count} times" for name, count in found.items() if count > 1}, "declared once", allowed)


def declared(node):
    """Names that a statement at the top of a module gives to a type."""
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.name] if isinstance(node, ast.ClassDef) else []


def test_records_are_taken_apart_in_one_place_each(modules, allowed):
    found = {
        name for name, module in modules.items() if room(name) in RECORD_ROOMS and subscripts(module.tree)
    }
    hold(found, "records", allowed)


def subscripts(tree):
    """How often something is read by a constant text as its key, outside of to_json and from_json."""
    count = 0
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and re.search(r"(to|from)_json$", node.name):
            continue
        is_record = (
            isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Constant)
            and isinstance(node.slice.value, str)
            and isinstance(node.ctx, ast.Load)
        )
        count += int(is_record) + subscripts(node)
    return count


LONGEST = 45
THE_STORY = "selftrain.loop.self_train"  # the article on one page, each stage under its own heading


def test_no_function_is_longer_than_a_page(modules):
    long = {one for module in modules.values() for one in longer_than(LONGEST, module)}
    assert long == {THE_STORY}


def longer_than(lines, module):
    """Names of functions with more lines below their docstring."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body and node.end_lineno - body[0].lineno + 1 > lines:
                yield f"{module.name}.{node.name}"


# ---- the face -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGES)
def test_a_face_exports_what_it_says_in_order(name, allowed):
    code = f"import {name} as face; names = getattr(face, '__all__', []); print(names == sorted(names) != [])"
    command = [sys.executable, "-c", f"{code}; [getattr(face, name) for name in names]"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    listed = allowed.get("face of", set()) & {name}
    hold({name} if done.stdout != "True\n" else set(), "face of", {"face of": listed})


def test_users_import_from_selftrain_alone(allowed):
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    programs = {"README.md": "\n".join(re.findall(r"```python\n(.*?)```", readme, re.S))}
    programs |= {f"runs/{f.name}": f.read_text(encoding="utf-8") for f in (CHECKOUT / "runs").glob("*.py")}
    found = set()
    for where, program in programs.items():
        for node in ast.walk(ast.parse(program)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            ours = [n for n in names if n.split(".")[0] in PACKAGES and n != "selftrain"]
            found |= {f"{where} imports {name}" for name in ours}
    hold(found, "face", allowed)


def test_import_selftrain_pulls_in_nothing_heavy(tmp_path):
    program = (
        "import sys, selftrain; print(sorted({'torch', 'vllm', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
        env={"PYTHONPATH": str(CHECKOUT), "PATH": ""},
    )  # fmt: skip
    assert result.stdout.strip() == "[]"


# ---- the rules' own eyes ------------------------------------------------------------------------------


@pytest.fixture
def small_house(tmp_path):
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "import selftrain.loop",
        "from selftrain import loop",
        "def f():\n    from selftrain.loop import Round",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from selftrain.loop import Round",
        "from . import loop",
    ],
)
def test_an_import_is_seen_wherever_it_stands(small_house, line):
    (small_house / "selftrain" / "loop.py").write_text("")
    (small_house / "selftrain" / "config.py").write_text(line)
    modules = read_modules(small_house)
    assert rising(modules) == ["selftrain.config imports selftrain.loop"]
    (small_house / "selftrain" / "loop.py").write_text("import selftrain.config")
    modules = read_modules(small_house)
    assert in_circles(module_graph(modules)) == {"selftrain.config", "selftrain.loop"}
    assert in_circles(room_graph(modules)) == {"config", "loop"}


def test_an_import_inside_a_function_is_told_from_one_at_the_top(small_house):
    (small_house / "selftrain" / "runs.py").write_text("import json\ndef f():\n    import re\n")
    imports = read_modules(small_house)["selftrain.runs"].imports
    assert [(one.name, one.inside) for one in imports] == [("json", False), ("re", True)]


def test_names_used_twice_are_seen(small_house):
    for place in ("agents/a.py", "selftrain/a.py"):
        (small_house / place).write_text("class Twice:\n    pass\nclass _Own:\n    pass\n")
    modules = read_modules(small_house)
    assert public_classes(modules)["Twice"] == ["selftrain.a", "agents.a"]
    assert module_names(modules)["a"] == ["selftrain.a", "agents.a"]
    assert "_Own" not in public_classes(modules)


def test_what_belongs_to_nobody_is_not_ours(small_house):
    assert own("os.path", read_modules(small_house)) == ""


def test_a_record_is_counted_outside_of_its_two_functions():
    taken = "def f(r):\n    return r['a'] + r['b']['c']\ndef to_json(r):\n    return r['a']\n"
    assert subscripts(ast.parse(taken)) == 3


def test_a_long_function_is_seen_and_its_docstring_not_counted(small_house):
    text = 'def f():\n    """Return.\n\n    More.\n    """\n    a = 1\n    return a\n'
    (small_house / "selftrain" / "new.py").write_text(text)
    module = read_modules(small_house)["selftrain.new"]
    assert list(longer_than(2, module)) == []
    assert list(longer_than(1, module)) == ["selftrain.new.f"]

"""What the code looks like from outside: its modules, rooms, imports, names and lines.

``python tests/architecture/structure.py`` prints it. A room is a package, or a module at the root of one; an
import counts wherever it stands, inside a function and under TYPE_CHECKING too.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[2]
LEAVES = ("agents", "losses", "backbones")
PACKAGES = ("selftrain", *LEAVES)

FLOORS = (
    "errors", "_util", *LEAVES, "engine", "store", "web", "config", "selection", "data", "state", "rounds",
    "models", "act", "panels", "review", "agentps", "annotation", "report", "serving", "verification", "loop",
    "build", "runs", "cli",
)  # fmt: skip
"""Rooms of selftrain, lowest first, with the leaves among them: nobody imports from a higher floor."""


class Import(NamedTuple):
    """One imported name.

    Attributes:
        name: Dotted, what is taken out of a module included.
        line: Where.
        inside: Whether it stands in a function.
        typing: Whether it is executed by type checkers alone.
    """

    name: str
    line: int
    inside: bool
    typing: bool


class Module(NamedTuple):
    """A parsed file.

    Attributes:
        name: Dotted.
        file: Where it lies.
        tree: Its syntax.
        imports: Everything that it imports.
    """

    name: str
    file: Path
    tree: ast.Module
    imports: tuple[Import, ...]


def read_modules(root: Path = CHECKOUT) -> dict[str, Module]:
    """Dotted name -> module, of the four packages below `root`."""
    modules = {}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            tree = ast.parse(file.read_text(encoding="utf-8"))
            above = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
            modules[name] = Module(name, file, tree, tuple(_imports(tree, above)))
    return modules


def _imports(tree: ast.Module, above: list[str]) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, *, inside: bool, typing: bool) -> None:
        for child in ast.iter_child_nodes(node):
            deeper = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checked = typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            if isinstance(child, ast.Import):
                found.extend(Import(alias.name, child.lineno, inside, typing) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join([*above[: len(above) - child.level + 1], *filter(None, [child.module])])
                base = base if child.level else child.module or ""
                found.extend(
                    Import(f"{base}.{alias.name}", child.lineno, inside, typing) for alias in child.names
                )
            visit(child, inside=deeper, typing=checked)

    visit(tree, inside=False, typing=False)
    return found


def own(name: str, modules: dict[str, Module]) -> str:
    """The module that an imported name belongs to; empty where it is none of ours."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def room(module: str) -> str:
    """The room of a module: ``selftrain.data.task`` -> ``data``, ``agents.trust`` -> ``agents``."""
    top, *rest = module.split(".")
    return rest[0] if top == "selftrain" and rest else top


def inner_room(module: str) -> str:
    """The folder or root module within a package: ``agents.ask.cache`` -> ``agents.ask``."""
    return ".".join(module.split(".")[:2])


def module_graph(modules: dict[str, Module]) -> dict[str, set[str]]:
    """Module -> modules that it imports."""
    return {
        name: {own(one.name, modules) for one in module.imports} - {name, ""}
        for name, module in modules.items()
    }


def room_graph(modules: dict[str, Module], *, inner: bool = False) -> dict[str, set[str]]:
    """Room -> rooms that it imports; the faces (``selftrain``, ``agents``, ...) count as nobody's room."""
    place = inner_room if inner else room
    graph: dict[str, set[str]] = defaultdict(set)
    for name, targets in module_graph(modules).items():
        for target in targets:
            if name not in PACKAGES and target not in PACKAGES and place(name) != place(target):
                graph[place(name)].add(place(target))
    return dict(graph)


def in_circles(graph: dict[str, set[str]]) -> set[str]:
    """Everything that imports itself by way of others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph.get(start, ()))
        while waiting:
            if (one := waiting.pop()) not in seen:
                seen.add(one)
                waiting += graph.get(one, ())
        return seen

    return {one for one in graph if one in reached(one)}


def rising(modules: dict[str, Module]) -> list[str]:
    """Imports from a higher floor, and of rooms without a floor."""
    found = set()
    for name, targets in module_graph(modules).items():
        for target in targets:
            here, there = room(name), room(target)
            if here == there or {name, target} & {*PACKAGES, "selftrain.__main__"}:
                continue
            if here not in FLOORS or there not in FLOORS or FLOORS.index(there) > FLOORS.index(here):
                found.add(f"{name} imports {target}")
    return sorted(found)


def public_classes(modules: dict[str, Module]) -> dict[str, list[str]]:
    """Name of a public class -> the modules that define one."""
    found = defaultdict(list)
    for name, module in modules.items():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(name)
    return dict(found)


def module_names(modules: dict[str, Module]) -> dict[str, list[str]]:
    """Last part of a name -> the modules that end in it; packages and the nouns of the command line aside."""
    found = defaultdict(list)
    for name, module in modules.items():
        if module.file.name not in ("__init__.py", "__main__.py") and not name.startswith("selftrain.cli."):
            found[name.rpartition(".")[2]].append(name)
    return dict(found)


def code_lines(root: Path = CHECKOUT) -> int:
    """Lines of code, pages and scripts outside the tests and the studies."""
    suffixes = (".py", ".js", ".css", ".j2")
    files = (f for top in (*PACKAGES, "runs") for f in (root / top).rglob("*") if f.suffix in suffixes)
    return sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files if "bench" not in f.parts)


def main() -> None:
    """Print rooms, circles, arrows back up, names used twice and lines."""
    modules = read_modules()
    rooms = room_graph(modules)
    at_root = [m for m in modules if m.startswith("selftrain.") and m.count(".") == 1]
    files = [m for m in at_root if modules[m].file.name != "__init__.py" and m != "selftrain.__main__"]
    graph = module_graph(modules)
    print(f"modules {len(modules)}, arrows {sum(map(len, graph.values()))}")
    print(f"rooms {len(FLOORS)}, arrows between them {sum(map(len, rooms.values()))}")
    print(f"modules at the root {len(files)}: {', '.join(m.rpartition('.')[2] for m in files)}")
    print(f"modules in circles: {', '.join(sorted(in_circles(graph))) or 'none'}")
    print(f"rooms in circles: {', '.join(sorted(in_circles(rooms))) or 'none'}")
    print(f"folders in circles: {', '.join(sorted(in_circles(room_graph(modules, inner=True)))) or 'none'}")
    up = rising(modules)
    print(f"arrows back up: {len(up)}", *up, sep="\n  ")
    for what, names in (("class", public_classes(modules)), ("module", module_names(modules))):
        twice = {name: where for name, where in names.items() if len(where) > 1}
        print(f"{what} names used twice: {len(twice)}")
        for name, where in sorted(twice.items()):
            print(f"  {name}: {', '.join(where)}")
    print(f"lines outside tests and runs/bench: {code_lines():,}")


if __name__ == "__main__":
    sys.exit(main())

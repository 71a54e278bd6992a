"""The wheel: what is in it, and that it runs from an environment that has never seen the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("agents", "backbones", "losses", "selftrain")

pytestmark = pytest.mark.integration


def run(*command, cwd, timeout=120):
    """Run a command without anything of this process's Python settings; fail with all it said."""
    environment = {
        name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_"))
    }
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip
    assert result.returncode == 0, f"{command} gave {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, CHECKOUT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new environment with the wheel alone; its dependencies are those of the running one."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    (site_packages,) = (folder / "lib").glob("python*/site-packages")
    # a plain line of a .pth file comes after the environment's own folder, and the .pth files in the folder
    # it names are not read: the running environment's editable selftrain stays out
    borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site_packages / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    return folder


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {*PACKAGES, info}
    assert [n for n in names if "/tests/" in n or Path(n).name.startswith(("test_", "conftest"))] == []
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert f"{info}/licenses/LICENSE" in names
    modules = {str(path.relative_to(CHECKOUT)) for top in PACKAGES for path in (CHECKOUT / top).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_the_wheel_carries_the_quickstart_recipe_and_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        recipe = archive.read("selftrain/recipes/quickstart.toml")
        (entry_points,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        assert recipe == (CHECKOUT / "runs" / "quickstart.toml").read_bytes()
        assert "selftrain = selftrain.cli:main" in archive.read(entry_points).decode()


def test_all_packages_are_imported_from_the_new_environment(environment, tmp_path):
    program = (
        f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})), sep='\\n')"
    )
    files = run(environment / "bin" / "python", "-c", program, cwd=tmp_path).split()
    assert len(files) == len(PACKAGES)
    assert all(Path(file).is_relative_to(environment) for file in files), files


def test_the_command_shows_its_help_from_any_folder(environment, tmp_path):
    shown = run(environment / "bin" / "selftrain", "--help", cwd=tmp_path)
    assert "usage" in shown.lower()
    assert "quickstart" in shown


def test_quickstart_runs_from_any_folder(environment, tmp_path, quickstart_cache, monkeypatch):
    monkeypatch.setenv("SELFTRAIN_CACHE", str(quickstart_cache))
    folder = tmp_path / "first"
    run(environment / "bin" / "selftrain", "quickstart", "--out", folder, cwd=tmp_path, timeout=900)
    assert (folder / "recipe.toml").is_file()
    assert (folder / "grown.jsonl").read_text().strip()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first"]  # nothing is left beside the run


# ---- the lower ends of the dependencies ------------------------------------------------------------------

# what needs neither the benchmarks nor an extra nor packages that are for development alone
UNITS = ("losses", "store", "verification")


@pytest.fixture(scope="module")
def oldest(wheel, tmp_path_factory):
    """A new environment with every dependency of the wheel at its lower bound.

    But for torch and torchvision, whose builds differ from place to place: they are of the versions that are
    here, from where pip finds them.
    """
    folder = tmp_path_factory.mktemp("oldest") / "venv"
    here = [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
    (folder.parent / "here.txt").write_text("\n".join(here))
    tools = [f"{name}=={version(name)}" for name in ("pytest", "pytest-timeout", "hypothesis")]
    places = [word for place in os.environ.get("PIP_FIND_LINKS", "").split() for word in ("-f", place)]
    install = (Path(sys.executable).with_name("uv"), "pip", "install", "--python", folder / "bin" / "python")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    run(
        *install, *places, "--resolution", "lowest-direct", "-c", folder.parent / "here.txt",
        "-r", CHECKOUT / "pyproject.toml", cwd=folder.parent, timeout=1200,
    )  # fmt: skip
    run(*install, "--no-deps", wheel, cwd=folder.parent)
    run(*install, *tools, cwd=folder.parent, timeout=300)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_quickstart_runs_with_the_oldest_dependencies(oldest, tmp_path):
    shown = run(
        oldest / "bin" / "selftrain", "quickstart", "--out", tmp_path / "first", cwd=tmp_path, timeout=900
    )
    assert (tmp_path / "first" / "grown.jsonl").read_text().strip()
    assert "stopped because" in shown


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("unit", UNITS)
def test_units_hold_with_the_oldest_dependencies(unit, oldest, tmp_path):
    words = (
        "-m",
        "pytest",
        "-c",
        CHECKOUT / "pyproject.toml",
        "--rootdir",
        CHECKOUT,
        "-p",
        "no:cacheprovider",
    )
    shown = run(
        oldest / "bin" / "python", *words, CHECKOUT / "tests" / "unit" / unit, cwd=tmp_path, timeout=900
    )
    assert " passed" in shown

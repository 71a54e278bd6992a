"""Whose `agents`, `losses` and `backbones` are found: fake site-packages, a fresh process each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
PACKAGES = ("agents", "losses", "backbones")


@pytest.fixture
def site(tmp_path):
    """A folder with what `import selftrain` needs and the three leaves, as a wheel would lay them down."""
    folder = tmp_path / "site-packages"
    (folder / "selftrain").mkdir(parents=True)
    (folder / "selftrain" / "_util").mkdir()
    for name in ("__init__.py", "_util/__init__.py", "_util/package_names.py", "errors.py"):
        shutil.copy(CHECKOUT / "selftrain" / name, folder / "selftrain" / name)
    for name in PACKAGES:
        (folder / name).mkdir()
        shutil.copy(CHECKOUT / name / "__init__.py", folder / name / "__init__.py")
    # a leaf that imports anything at all would show that the check imports it
    for name in PACKAGES:
        with (folder / name / "__init__.py").open("a") as opened:
            opened.write("\nraise RuntimeError('the check must not import this')\n")
    return folder


def add_distribution(folder, title, version, *files):
    """Lay down files, and a dist-info folder that lists them."""
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from .agent import Agent\n")
    info = folder / f"{title.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {title}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def import_selftrain(*path, cwd, before=""):
    """Import selftrain with exactly `path` before the standard library; -I keeps the environment out."""
    first = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}"
    program = f"{first}\n{before}\nimport selftrain\nprint('imported')"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_our_own_packages_pass_without_being_imported(site, tmp_path):
    result = import_selftrain(site, cwd=tmp_path)
    assert (result.returncode, result.stdout.strip()) == (0, "imported"), result.stderr


def test_an_editable_install_passes(tmp_path):
    """The checkout itself on the path, as the .pth file of an editable install puts it there."""
    result = import_selftrain(CHECKOUT, cwd=tmp_path)
    assert (result.returncode, result.stdout.strip()) == (0, "imported"), result.stderr


def test_a_checkout_reached_through_a_link_passes(site, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(site, target_is_directory=True)
    assert import_selftrain(link, cwd=tmp_path).stdout.strip() == "imported"


def test_a_package_of_another_distribution_earlier_on_the_path(site, tmp_path):
    other = tmp_path / "other"
    add_distribution(other, "openai-agents", "0.2.1", "agents/__init__.py", "agents/agent.py")
    result = import_selftrain(other, site, cwd=tmp_path)
    assert result.returncode == 1
    assert "NameTakenError" in result.stderr
    assert str(other / "agents" / "__init__.py") in result.stderr
    assert str(site / "agents" / "__init__.py") in result.stderr
    assert "belongs to openai-agents 0.2.1" in result.stderr
    assert "virtual environment of its own" in result.stderr


def test_a_package_of_another_distribution_later_on_the_path_does_no_harm(site, tmp_path):
    other = tmp_path / "other"
    add_distribution(other, "openai-agents", "0.2.1", "agents/__init__.py")
    assert import_selftrain(site, other, cwd=tmp_path).stdout.strip() == "imported"


def test_a_distribution_installed_over_ours(site, tmp_path):
    add_distribution(site, "selftrain", "0.1.0")
    (site / "selftrain-0.1.0.dist-info" / "RECORD").write_text("agents/__init__.py,,\n")
    add_distribution(site, "openai-agents", "0.2.1", "agents/__init__.py", "agents/agent.py")
    result = import_selftrain(site, cwd=tmp_path)
    assert result.returncode == 1
    assert (
        f"{site / 'agents' / '__init__.py'} is not selftrain's any more: openai-agents 0.2.1" in result.stderr
    )
    assert "and selftrain" not in result.stderr


@pytest.mark.parametrize("name", PACKAGES)
def test_a_script_of_that_name_earlier_on_the_path(site, tmp_path, name):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / f"{name}.py").write_text("raise RuntimeError('the check must not import this')\n")
    result = import_selftrain(scripts, site, cwd=tmp_path)
    assert result.returncode == 1
    assert f"import {name} would take {scripts / name}.py" in result.stderr
    assert "No installed distribution owns it" in result.stderr


def test_a_missing_package_says_so(site, tmp_path):
    shutil.rmtree(site / "losses")
    result = import_selftrain(site, cwd=tmp_path)
    assert result.returncode == 1
    assert "package 'losses' is missing" in result.stderr


def test_a_folder_of_that_name_does_not_stand_for_a_missing_package(site, tmp_path):
    shutil.rmtree(site / "losses")
    scripts = tmp_path / "scripts"
    (scripts / "losses").mkdir(parents=True)
    result = import_selftrain(scripts, site, cwd=tmp_path)
    assert f"import losses would take {scripts / 'losses'}, which is not selftrain's" in result.stderr


def test_a_stand_in_without_a_spec_is_named(site, tmp_path):
    before = "import types; sys.modules['agents'] = types.ModuleType('agents')"
    result = import_selftrain(site, cwd=tmp_path, before=before)
    assert "import agents would take <'agents' in sys.modules, without a file>" in result.stderr

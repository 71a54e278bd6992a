"""Tasks that come with the package: classes, policy and questions to begin from, one TOML file each."""

from __future__ import annotations

from pathlib import Path

from selftrain.data.task import Task, load_task
from selftrain.errors import TaskError
from selftrain.store.atomic import write_bytes

_FOLDER = Path(__file__).parent


def template_names() -> tuple[str, ...]:
    """Return the names of all templates, in order."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.toml")))


def template_file(name: str) -> Path:
    """Return the file of a template, with its comments.

    Raises:
        TaskError: There is none of that name.
    """
    if name not in template_names():
        raise TaskError(f"no task is called {name!r}; expected one of {list(template_names())}")
    return _FOLDER / f"{name}.toml"


def load_template(name: str) -> Task:
    """Load the task of a template.

    Raises:
        TaskError: There is none of that name.
    """
    return load_task(template_file(name))


def write_template(name: str, out: Path) -> Task:
    """Write a template where it can be edited; a file that is there already stays.

    Raises:
        TaskError: There is none of that name, or `out` exists.
        StorageError: The disk refuses.
    """
    task = load_template(name)
    if out.exists():
        raise TaskError(f"{out} exists and may have been edited: remove it, or name another file")
    write_bytes(out, template_file(name).read_bytes())
    return task

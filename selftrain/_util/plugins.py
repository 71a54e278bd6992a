"""Parts by name: ``kind = "package.module:Class"`` with ``[section.options]``, and back from a part."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any, get_args

from selftrain._util.files import plain_number
from selftrain.errors import RecipeError

LONGEST = 10_000
"""Characters of an argument's JSON; what is longer (a table of answers, say) is data and no option."""


def is_own(kind: str) -> bool:
    """Whether a kind names a class of the user's instead of one that is built in."""
    return ":" in kind


def locate(path: str) -> Any:  # noqa: ANN401 -- whatever it names
    """Import what "package.module:Name" names.

    Raises:
        ImportError, AttributeError, ValueError: There is no such thing.
    """
    module, _, name = path.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def build_part(path: str, options: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 -- whatever it makes
    """Import the class that a recipe names, "package.module:Class", and make one with its options.

    Raises:
        RecipeError: It cannot be imported, or does not take these options; `key` says where the recipe names
        it.
    """
    try:
        make = locate(path)
    except (ImportError, AttributeError, ValueError, TypeError, SyntaxError, RecursionError) as error:
        raise RecipeError(
            f'{key} is "{path[:200]}", which cannot be imported ({error}): expected "package.module:Class" of'
            " a package that is installed here, or lies on PYTHONPATH"
        ) from error
    try:
        return make(**options)
    except TypeError as error:
        raise RecipeError(f'{key} is "{path}", which does not take these options: {error}') from error


def accepted(make: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `options` that `make` has a parameter for."""
    names = inspect.signature(make).parameters
    return {name: value for name, value in options.items() if name in names}


def choices(path: str) -> Collection[str]:
    """Return the names in a registry: the keys of a mapping, or what a `Literal` lists."""
    found = locate(path)
    return tuple(found) if isinstance(found, Mapping) else get_args(found)


def name_of(part: object) -> str:
    """Return the kind under which a recipe would name a part's class."""
    return f"{type(part).__module__}:{type(part).__qualname__}"


def options_of(part: object) -> dict[str, Any]:
    """Return the arguments that a part was made with, as far as they are plain values, parts inside it too.

    An argument is looked for under its own name, where dataclasses and scikit-learn's estimators keep it, or
    behind an underscore. What is not kept so, or is None, is left out.
    """
    found = {}
    for name in inspect.signature(type(part)).parameters:
        value = _plain(getattr(part, name, getattr(part, f"_{name}", None)))
        if value is not None and len(json.dumps(value)) <= LONGEST:
            found[name] = value
    return found


def _plain(value: object) -> Any:  # noqa: ANN401 -- a value of TOML
    """Return `value` as TOML writes it, or None where it cannot."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, Real):  # of NumPy, too
        return plain_number(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        items = {str(key): _plain(item) for key, item in value.items()}
        return items if None not in items.values() else None
    if isinstance(value, list | tuple):
        parts = [_plain(item) for item in value]
        return parts if None not in parts else None
    return None

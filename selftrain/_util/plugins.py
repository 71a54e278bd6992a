"""Parts of one's own in a recipe: ``kind = "package.module:Class"`` with ``[section.options]``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from selftrain.errors import RecipeError


def is_own(kind: str) -> bool:
    """Whether a kind names a class of the user's instead of one that is built in."""
    return ":" in kind


def build_own(kind: str, options: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 -- whatever it makes
    """Import the class that a recipe names, and make one with its options.

    Args:
        kind: "package.module:Class".
        options: Keyword arguments of the class.
        key: Where the recipe names it, for errors: "selection.kind".

    Raises:
        RecipeError: It cannot be imported, or does not take these options.
    """
    module, _, name = kind.partition(":")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f'{key} is "{kind}", which cannot be imported ({error}): expected "package.module:Class" of a'
            " package that is installed here, or lies on PYTHONPATH"
        ) from error
    try:
        return found(**options)
    except TypeError as error:
        raise RecipeError(f'{key} is "{kind}", which does not take these options: {error}') from error


def name_of(part: object) -> str:
    """Return the kind under which a recipe would name a part's class."""
    return f"{type(part).__module__}:{type(part).__qualname__}"

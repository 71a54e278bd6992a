"""TOML tables that pydantic checks, with paths resolved and single keys overridden on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    PlainSerializer,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from selftrain._util.files import read_toml
from selftrain._util.object_urls import is_url, local_path, url_or_path
from selftrain._util.printable import first_told, shorten
from selftrain.errors import RecipeError

_LISTED = """; a list is written ["a", "b"], with --set in single quotes: --set 'KEY=["a", "b"]'"""
_TABLED = """; a table is written {name = "a"}, with --set in single quotes: --set 'KEY={name = "a"}'"""
_WRITTEN = {"tuple_type": _LISTED, "list_type": _LISTED, "dict_type": _TABLED}

Read = TypeVar("Read", bound="Section")

TablePath = Annotated[Path, BeforeValidator(local_path), PlainSerializer(url_or_path, when_used="json")]
"""A table to read: a path, or the URL of an object, which is then what is written of it again."""


# of the two branches of a value that is a word or a table; a fault is one of its own branch alone
WORD, TABLE = Tag("(a word)"), Tag("(a table)")
WORD_OR_TABLE = Discriminator(lambda given: (TABLE if isinstance(given, Mapping) else WORD).tag)


class Section(BaseModel):
    """A table of the recipe. An unknown key is an error: a typing slip must not become a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false where a number is expected: pydantic takes them for 1 and 0."""
        found = next(_switches(value), None)
        if found is None:
            return value
        kind = cls.model_fields[str(info.field_name)].annotation
        inner = isinstance(value, Mapping | list)  # within it a table's keys are texts, and not it
        other = _holds(bool, kind) or (not inner and _holds(str, kind))
        if not other and (_holds(int, kind) or _holds(float, kind)):
            raise ValueError(f"{'there' if inner else 'it'} is {str(found).lower()}; expected a number")
        return value

    @model_validator(mode="after")
    def _on_a_disk(self) -> Self:
        """Refuse a URL where a path is expected; that of a `TablePath` is a path by now."""
        for name, value in self:
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, Path) and is_url(one):
                    raise ValueError(
                        f"{name} is a URL: expected a path on a disk of this machine; of what lies on object"
                        " storage manifests alone are read"
                    )
        return self


def read_table(kind: type[Read], path: Path | None, overrides: Sequence[str]) -> Read:
    """Read a TOML file, or an empty one, and apply ``section.key=value``, to a checked table.

    Paths in it are relative to the file, those of overrides to where they are typed.

    Raises:
        RecipeError: As `load_recipe`.
    """
    paths = set(_path_keys(kind))
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = read_toml(path)
        except OSError as error:
            raise RecipeError(f"cannot read the recipe {path}: {error.strerror or error}") from error
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"the recipe {path} is not TOML: {error}") from error
        folder = path.resolve().parent
        for section, key in paths:
            if isinstance(table.get(section), dict) and key in table[section]:
                table[section][key] = _placed(table[section][key], lambda given: folder / given)
    for override in overrides:
        _override(table, override, paths)
    return checked(kind, table, "the recipe" if path is None else f"the recipe {path}")


def checked(kind: type[Read], table: Mapping[str, Any], named: str) -> Read:
    """Return a checked table; RecipeError: what is `named` so has faults, each is said with its place."""
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise RecipeError(f"{named} has {error.error_count()} fault(s):\n{_faults(error)}") from error


def flatten(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return section.key -> value, as `--set` names them, tables within tables too."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": item for key, item in flatten(value).items()}
        else:
            found[name] = value
    return found


def _path_keys(kind: type[Section]) -> Iterator[tuple[str, str]]:
    """Yield section and key of whatever is declared as a path, or several."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            for key, inner in field.annotation.model_fields.items():
                if _holds(Path, inner.annotation):
                    yield name, key


def _switches(value: object) -> Iterator[bool]:
    """Yield true and false out of a value, a list or a table, at any depth."""
    if isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _switches(one)


def _holds(wanted: type, kind: object) -> bool:
    """Return whether a declared type is `wanted`, or has it among its parts."""
    return kind is wanted or any(_holds(wanted, part) for part in get_args(kind))


def _override(table: dict[str, Any], override: str, paths: Collection[tuple[str, str]]) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys) or len(keys) > 3:  # vlm.user.servers: a table within a section
        raise RecipeError(f"--set {shorten(override)}: expected section.key=value, for instance rounds.max=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        if text.lstrip()[:1] in ("[", "{", '"', "'"):
            raise RecipeError(
                f"--set {shorten(override)} is not TOML: {error}. Texts of a list or table stand in double"
                f""" quotes, and the whole in single ones: --set '{name.strip()}=["a", "b"]'"""
            ) from error
        value = text  # a bare word: --set classifier.head=mlp
    section = table
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise RecipeError(f"--set {shorten(override)}: {key!r} is not a section of the recipe")
    section[keys[-1]] = _placed(value, Path.resolve) if tuple(keys) in paths else value


def _placed(value: Any, place: Callable[[Path], Path]) -> Any:  # noqa: ANN401 -- whatever a recipe holds
    """Return the path, or the list of paths, that a value is; what is none, or a URL, is left to pydantic."""
    if isinstance(value, list):
        return [_placed(one, place) for one in value]
    if not isinstance(value, str) or is_url(value):
        return value
    path = Path(value)
    with suppress(RuntimeError, ValueError):  # of nobody here: it will be said to be missing
        path = path.expanduser()
    return str(place(path))


def _faults(error: ValidationError) -> str:
    return "\n".join(first_told(map(_fault, error.errors()), "  ..."))


def _fault(fault: Any) -> str:  # noqa: ANN401 -- pydantic's record of one
    parts = [part for part in fault["loc"] if part not in (WORD.tag, TABLE.tag)]
    place = ".".join(str(part)[:80] for part in parts) or "recipe"
    found = "" if fault["type"] in ("missing", "value_error") else f" (found {shorten(fault['input'])})"
    told = fault["msg"].removeprefix("Value error, ")
    if fault["loc"][-1:] == (WORD.tag,):
        told += ", or a table of numbers"
    return f"  {place}: {told}{found}{_WRITTEN.get(fault['type'], '')}"

"""Prompt files: those that come with the package, each of which a user's own may replace; all are checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from string import Template

from agents.errors import PromptError


class Templates:
    """The files of one kind of prompt.

    Args:
        built_in: Folder of the package's own files.
        placeholders: File -> the placeholders that it may use.
        required: Of these it must use those that it may.
        folder: Files that replace the built-in ones of the same name; None for none.

    Raises:
        PromptError: A file of no known name, a placeholder that is unknown, or one that is missing.
    """

    def __init__(
        self,
        built_in: Path,
        placeholders: Mapping[str, set[str]],
        required: set[str],
        folder: Path | None = None,
    ) -> None:
        self._placeholders = placeholders
        if folder is not None:
            _no_strangers(folder, placeholders)
        self._templates = {}
        for name, allowed in placeholders.items():
            own = folder / name if folder is not None else None
            file = own if own is not None and own.exists() else built_in / name
            self._templates[name] = _template(file, allowed, required)

    def fill(self, file: str, **values: str) -> str:
        """The file's text; values that it may not use are left out."""
        allowed = self._placeholders[file]
        filled = self._templates[file].substitute({k: v for k, v in values.items() if k in allowed})
        return filled.strip("\n")


def _no_strangers(folder: Path, known: Collection[str]) -> None:
    try:
        listed = [file for file in folder.iterdir() if not file.name.startswith(".")]
    except OSError as error:
        raise PromptError(f"no prompt files can be read from {folder}: {error.strerror or error}") from error
    strangers = sorted(file.name for file in listed if file.name not in known)
    if strangers:
        raise PromptError(
            f"{folder} holds {strangers}; expected only prompt files named {sorted(known)}: "
            "rename or remove them"
        )


def _template(file: Path, allowed: set[str], required: set[str]) -> Template:
    try:
        template = Template(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"the prompt file {file} cannot be read: {error}") from error
    if not template.is_valid():
        raise PromptError(f"{file}: a $ that begins no placeholder; write $$ for a dollar sign")
    found = set(template.get_identifiers())
    if found - allowed:
        raise PromptError(
            f"{file} uses the placeholders {sorted(found - allowed)}; it may use {sorted(allowed)}: "
            "correct them, or write $$ for a dollar sign"
        )
    missing = (allowed & required) - found
    if missing:
        raise PromptError(
            f"{file} lacks the placeholders {sorted(missing)}: without them nothing can be judged"
        )
    return template

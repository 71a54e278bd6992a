"""Damage is seen: the SHA-256 of every file that a run, a labelling or a model's folder is read from.

checksums.json in the folder names them, by path. A digest is noted before its file takes its place, beside
those of the file that is replaced, so that a kill between the two leaves a folder that is sound; whoever
reads a file has it checked first. Bits that flip, lines that are cut or turned over, files that are emptied
or gone are told, instead of giving other results: a `RunStateError` says what to do. Against somebody who
writes both files it does not help.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from selftrain._util.files import check_regular
from selftrain.errors import RunStateError
from selftrain.store import atomic

FILE = "checksums.json"
ROUNDS = "rounds"
# digests of a file's earlier contents that stay valid: it holds one of them where a write was noted, and then
# killed or refused by the disk, as often as that may happen in a row
_BEFORE = 3

_AGAIN = "give the command that wrote it once more: it is written anew"
_REMEDIES = {
    "grown.jsonl": _AGAIN,
    "quarantine.jsonl": _AGAIN,
    "annotations.jsonl": f"{_AGAIN}, and no answer is paid for twice",
    "trust.json": "remove it: the report goes without, until the next round writes it",
}


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def note(root: Path, digests: Mapping[str, str], *, instead_of: str | None = None) -> None:
    """Note what files of a folder hold, or will hold in a moment: path relative to it -> SHA-256, in hex.

    Files below `instead_of` are forgotten; the others stay known.
    """
    before = _read(root)
    known = {
        name: found for name, found in before.items() if instead_of is None or not name.startswith(instead_of)
    }
    for name, digest in digests.items():
        if known.get(name, [])[-1:] != [digest]:
            known[name] = [*known.get(name, [])[-_BEFORE:], digest]
    if known != before:
        atomic.write_json(root / FILE, dict(sorted(known.items())))


def note_written(file: Path) -> None:
    """Note a file that was written already, where what it holds never changes."""
    note(file.parent, {file.name: digest_of(file)})


def note_round(root: Path, folder: Path, last: Mapping[str, str]) -> None:
    """Note all files of a round's folder, and `last`, which are about to be written there."""
    place = f"{ROUNDS}/{folder.name}/"
    digests = {one.name: digest_of(one) for one in sorted(folder.iterdir()) if one.is_file()} | dict(last)
    note(root, {place + name: digest for name, digest in digests.items()}, instead_of=place)


def files_of(root: Path) -> list[Path]:
    """Return the files that a folder is read from, as far as it notes them; none of a model in one file."""
    return [root / name for name in _read(root)]


def check(file: Path) -> None:
    """Refuse a file that is not as it was written; one of a folder that notes nothing of it is let pass.

    Something else in its place is refused too: a FIFO would block whoever opens it.
    """
    for root in (file.parent, file.parent.parent.parent):
        if (root / FILE).exists():
            name = file.relative_to(root).as_posix()
            break
    else:
        return
    if file.exists() and not file.is_file():
        raise RunStateError(
            f"{file} is damaged: it is no regular file. Remove it. What to do then: {_remedy(root, name)}"
        )
    try:
        found = digest_of(file)
    except OSError as error:
        found = error.strerror or str(error)
    # read after the file: who replaces it meanwhile has noted it before
    known = _read(root).get(name)
    if known is not None and found not in known:
        raise RunStateError(
            f"{file} is damaged: it does not hold what was written ({root / FILE} has its SHA-256)."
            f" What to do: {_remedy(root, name)}"
        )


def write_text(file: Path, text: str) -> None:
    """Note what a file of a folder will hold, and replace it."""
    content = text.encode("utf-8")
    with atomic.replacing(file, len(content)) as part:
        part.write_bytes(content)
        note(file.parent, {file.name: hashlib.sha256(content).hexdigest()})


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """As `write_text`, one indented JSON object."""
    write_text(file, atomic.json_text(value))


def write_jsonl(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """As `write_text`, one JSON object a line, each written as it comes."""
    digest = hashlib.sha256()
    with atomic.replacing(file) as part:
        with part.open("wb") as opened:
            for row in rows:
                line = atomic.jsonl_text((row,)).encode("utf-8")
                digest.update(line)
                opened.write(line)
        note(file.parent, {file.name: digest.hexdigest()})


def _read(root: Path) -> dict[str, list[str]]:
    file = root / FILE
    try:
        check_regular(file)
        return msgspec.json.decode(file.read_bytes(), type=dict[str, list[str]])
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RunStateError(
            f"{file} is damaged ({error}): take it from a copy, or remove it; without it, damage to the other"
            " files is not seen"
        ) from error


def _remedy(root: Path, name: str) -> str:
    if name.startswith(f"{ROUNDS}/"):
        return (
            f"remove {root / Path(name).parent} and the rounds after it, and give the run's command again:"
            " they are done again, and no answer is paid for twice"
        )
    return _REMEDIES.get(name, "take it from a copy, or begin anew in another folder")

"""Which model answers at an address, read from /v1/models and /version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agents.client.base import Identity
from agents.client.translate import BrokenAnswerError
from agents.errors import ServerRefusedError

FINGERPRINTED = ("*.safetensors", "*.json", "*.jinja")


class Served(NamedTuple):
    """What an address serves; addresses that are used together agree in all of it.

    Attributes:
        model: The name to ask for.
        root: What was loaded under it.
        base: Root of the model under an adapter; empty without one.
        context: Most tokens of prompt and answer; 0: the server does not say.
        server: "vllm <version>", or "openai-compatible" where there is no /version.
    """

    model: str
    root: str
    base: str
    context: int
    server: str

    def __str__(self) -> str:
        loaded = f"{self.root} over {self.base}" if self.base else self.root
        return f"{self.model} ({loaded}, {self.context} tokens, {self.server})"


def read_served(address: str, models: bytes, version: bytes | None, wanted: str) -> Served:
    """What `address` serves under the name `wanted`; under its only name where that is empty.

    Args:
        address: For the messages.
        models: Body of /v1/models.
        version: Body of /version; None: there is no such path.
        wanted: Model name or "".

    Raises:
        ServerRefusedError: It is not served, or there are several to choose from.
        BrokenAnswerError: A body is not what these paths answer.
    """
    cards = _cards(models)
    names = ", ".join(cards) or "none"
    if wanted and wanted not in cards:
        raise ServerRefusedError(f"{address} does not serve {wanted!r}; it serves: {names}")
    if not wanted and len(cards) != 1:
        raise ServerRefusedError(f"{address} serves {len(cards)} models ({names}): say which one to use")
    card = cards[wanted or next(iter(cards))]
    under = _under(cards, card)
    context = card.get("max_model_len") or (under or {}).get("max_model_len")  # an adapter's card has none
    return Served(
        model=str(card["id"]),
        root=str(card.get("root") or card["id"]),
        base=str(under.get("root") or under["id"]) if under else str(card.get("parent") or ""),
        context=context if isinstance(context, int) else 0,
        server="openai-compatible" if version is None else f"vllm {_version(version)}",
    )


def identify(served: Served, revision: str) -> Identity:
    """`served` with the revision that the user states, or else fingerprints of the folders that lie here."""
    if not revision:
        marks = [fingerprint(root) for root in (served.root, served.base) if root]
        revision = "+".join(mark for mark in marks if mark)
    return Identity(served.model, served.root, served.base, revision, served.server, served.context)


def fingerprint(root: str) -> str:
    """SHA-256, in hex, of the files' names, sizes and times in the folder `root`; "" where it is none.

    The weights themselves are not read: a model of many gigabytes would take minutes. config.json is.
    """
    folder = Path(root)
    if not folder.is_absolute() or not folder.is_dir():
        return ""  # a hub name, or a path on another machine
    digest = hashlib.sha256()
    for file in sorted({file for pattern in FINGERPRINTED for file in folder.glob(pattern)}):
        state = file.stat()
        digest.update(f"{file.name}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    config = folder / "config.json"
    if config.is_file():
        digest.update(config.read_bytes())
    return digest.hexdigest()


def agree(served: Mapping[str, Served]) -> Served:
    """The one thing that all addresses serve.

    Raises:
        ServerRefusedError: Two of them differ; the message shows both.
    """
    first, *others = served.items()
    for address, other in others:
        if other != first[1]:
            raise ServerRefusedError(
                f"the addresses serve different models: {first[0]} {first[1]}, but {address} {other}. "
                "Answers of both would be kept under one name: give addresses that serve the same"
            )
    return first[1]


def _cards(models: bytes) -> dict[str, Mapping[str, Any]]:
    try:
        cards: Sequence[Mapping[str, Any]] = json.loads(models)["data"]
        return {str(card["id"]): card for card in cards}
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenAnswerError(f"/v1/models is no list of models ({error!r})") from error


def _under(cards: Mapping[str, Mapping[str, Any]], card: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The card of the model under an adapter.

    vLLM's `parent` is the served name of the base unless the user named it otherwise when the adapter was
    loaded; then the only model that is no adapter is meant.
    """
    if not card.get("parent"):
        return None
    if card["parent"] in cards:
        return cards[card["parent"]]
    bases = [other for other in cards.values() if not other.get("parent")]
    return bases[0] if len(bases) == 1 else None


def _version(version: bytes) -> str:
    try:
        return str(json.loads(version)["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenAnswerError(f"/version is no version ({error!r})") from error

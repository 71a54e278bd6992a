"""The process behind the review page: one run, one ledger, as many reviewers as come."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from selftrain.errors import LedgerError, ServingError
from selftrain.review.labelling import LabelFolder
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER, LedgerReader
from selftrain.review.page.material import Material, policy_of
from selftrain.review.page.review_app import build_app
from selftrain.review.page.review_page import render_review
from selftrain.review.page.session import ReviewSession
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder
from selftrain.web.http_server import HttpServer, endpoint_of, listen

REMEMBERED = ".review.json"
"""Token and port of the last start, in the run folder, for its owner alone: open pages survive a restart."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,}")
_SHOWN = 3


class Opening(NamedTuple):
    """Where a server listens and what its address shows.

    Attributes:
        host: To listen on.
        port: 0: the one of the last start, if it is free, else any that is.
        reviewer: Named in the printed address; "": whoever opens it types a name.
    """

    host: str = "127.0.0.1"
    port: int = 0
    reviewer: str = ""


def open_session(folder: RunFolder, *, show_opinions: bool = False) -> ReviewSession:
    """The session of a run that has something to review.

    Raises:
        RunStateError: No run folder, or a damaged one.
        LedgerError: No ledger, an empty one, one that cannot be used, or one of another run.
    """
    ledger = ReviewLedger(folder.path / LEDGER)
    try:
        return ReviewSession(ledger, _own_material(folder, ledger), show_opinions=show_opinions)
    except BaseException:
        ledger.close()
        raise


def _own_material(folder: RunFolder, ledger: LedgerReader) -> Material:
    """What is shown of the ledger's posts, which are this run's."""
    classes, material = folder.class_names(), Material(folder)
    another = f"{ledger.path} is the ledger of another run"
    if set(ledger.classes) != set(classes):
        raise LedgerError(
            f"{another}: it has the classes {list(ledger.classes)}, {folder.path} has {list(classes)}. Move"
            " the file away"
        )
    drawn = [post_id for batch in ledger.batches() for post_id in ledger.drawn(batch)]
    unknown = material.unknown(drawn)
    if unknown:
        raise LedgerError(
            f"{another}: {len(unknown):,} of its {len(drawn):,} posts are unknown to {folder.path}, for"
            f" instance {unknown[:_SHOWN]}. Move the file away"
        )
    return material


def serve(
    folder: RunFolder,
    session: ReviewSession,
    opening: Opening,
    *,
    tell: Callable[[str], None],
    opened: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C; a second signal does not wait for requests under way.

    Args:
        folder: The run.
        session: Of that run; it stays open.
        opening: Where.
        tell: Told, line by line, what a person at the terminal should know.
        opened: Told the address, once it answers.

    Raises:
        ServingError: The port cannot be had.
        StorageError: The run folder cannot be written.
    """
    token, port = _remembered(folder)
    listener = None
    if not opening.port and port:
        try:
            listener = listen(opening.host, port)
        except ServingError:  # taken meanwhile; any other will do
            listener = None
    listener = listener or listen(opening.host, opening.port)
    try:
        _remember(folder, token, listener.getsockname()[1])
        names = () if opening.host in LOOPBACK else (opening.host,)
        page = render_review(
            folder.path.resolve().name,
            session.ledger.classes,
            policy_of(folder, session.ledger.classes),
            lease_seconds=session.ledger.lease_seconds,
            command=next_command(folder),
            train=train_command(folder),
            show_opinions=session.show_opinions,
        )
        app = build_app(session, page, token=token, hosts=names)
        where = f"{endpoint_of(listener)}/?token={token}"
        if opening.reviewer:
            where += f"&reviewer={quote(opening.reviewer, safe='')}"

        def started() -> None:
            for line in _welcome(where, opening):
                tell(line)
            opened(where)

        asyncio.run(HttpServer(app, started=started).serve([listener]))
    finally:
        listener.close()


def train_command(folder: RunFolder) -> str:
    """What trains a classifier on the reviews, see `selftrain.review.act_training`."""
    out = str(folder.path)
    return f"selftrain act train {shlex.quote(out)} --out {shlex.quote(out.rstrip('/') + '-act')}"


def next_command(folder: RunFolder) -> str:
    """What gives the reviewed labels to the run: its own recipe holds every setting, overridden ones too."""
    out = shlex.quote(str(folder.path))
    if isinstance(folder, LabelFolder):
        return f"selftrain act export {out} --out labelled.jsonl"
    if (folder.path / "quickstart-data").is_dir():
        return f"selftrain quickstart --out {out}"
    return f"selftrain run {shlex.quote(str(folder.recipe_path))} --out {out}"


def _welcome(where: str, opening: Opening) -> Iterable[str]:
    yield f"open {where}"
    if opening.host not in LOOPBACK:
        yield "warning: other machines may reach this address, and what passes is not encrypted"
    if opening.reviewer:
        yield "more reviewers open the same address with another name after reviewer="
    else:
        yield "each reviewer opens this address and types a name, or has it in the address: ...&reviewer=NAME"
    yield "Ctrl-C ends; every answer is kept, and the same command goes on at the same address"


def _remembered(folder: RunFolder) -> tuple[str, int]:
    """Token and port of the last start; a new token and 0 where there was none."""
    try:
        kept = json.loads((folder.path / REMEMBERED).read_text(encoding="utf-8"))
        token, port = kept.get("token"), kept.get("port")
    except (OSError, ValueError, AttributeError):
        token, port = None, 0
    if not (isinstance(token, str) and _TOKEN.fullmatch(token) and isinstance(port, int)):
        return secrets.token_urlsafe(32), 0
    return token, port


def _remember(folder: RunFolder, token: str, port: int) -> None:
    path: Path = folder.path / REMEMBERED
    with atomic.replacing(path) as part:
        part.touch(mode=0o600)
        part.write_text(json.dumps({"token": token, "port": port}), encoding="utf-8")

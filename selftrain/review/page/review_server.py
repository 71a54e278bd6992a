"""The process behind the review page: one run, one ledger, as many reviewers as come."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import socket
from collections.abc import Callable
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import uvloop

from selftrain._util.files import read_json
from selftrain._util.printable import printable
from selftrain.data.run_posts import task_words
from selftrain.errors import LedgerError, ServingError
from selftrain.review.labelling import LabelFolder, train_command
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER, UNSURE
from selftrain.review.page.review_app import build_app
from selftrain.review.page.session import Material, ReviewSession
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder
from selftrain.web.access import LOOPBACK
from selftrain.web.html import RenderedPage, as_json, render_page
from selftrain.web.http_server import HttpServer, endpoint_of, listen

REMEMBERED, DOOR = ".review.json", ".review.html"
"""In the run folder, for its owner alone: token and port of the last start, so that open pages survive a
restart; and a page that leads to the review, so that the token stands in no browser's command line."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,}")
_SHOWN = 3


class Opening(NamedTuple):
    """Where a server listens and what its URL shows."""

    host: str = "127.0.0.1"  # to listen on
    port: int = 0  # 0: the one of the last start, if it is free, else any that is
    reviewer: str = ""  # named in the printed URL; "": whoever opens it types a name


def open_session(folder: RunFolder, *, show_opinions: bool = False) -> ReviewSession:
    """Open the session of a run that has something to review.

    Raises:
        LedgerError: No ledger, an empty one, one that cannot be used, or one of another run.
    """
    ledger = ReviewLedger(folder.path / LEDGER)
    try:
        return ReviewSession(ledger, _own_material(folder, ledger), show_opinions=show_opinions)
    except BaseException:
        ledger.close()
        raise


def _own_material(folder: RunFolder, ledger: ReviewLedger) -> Material:
    """Return what is shown of the ledger's posts, which are this run's."""
    classes, material, drawn = folder.class_names(), Material(folder), list(ledger.all_drawn())
    another = f"{ledger.path} is the ledger of another run"
    if set(ledger.classes) != set(classes):
        raise LedgerError(
            f"{another}: it has the classes {list(ledger.classes)}, {folder.path} has {list(classes)}. Move"
            " the file away"
        )
    if unknown := material.unknown(drawn):
        raise LedgerError(
            f"{another}: {len(unknown):,} of its {len(drawn):,} posts are unknown to {folder.path}, for"
            f" instance {unknown[:_SHOWN]}. Move the file away"
        )
    return material


def render_review(folder: RunFolder, session: ReviewSession) -> RenderedPage:
    """Render the page of a run, once: what changes comes later, as JSON."""
    task, shown = task_words(folder, session.ledger.classes), session.show_opinions
    settings = {
        "classes": [{"name": one, "shown": printable(one)} for one in task.classes],
        "unsure": UNSURE, "lease": session.ledger.lease_seconds, "opinions": shown,
        "command": printable(next_command(folder)), "train": printable(train_command(folder.path)),
    }  # fmt: skip
    name = folder.path.resolve().name
    values = {"name": name, "task": task, "settings": as_json(settings), "show_opinions": shown}
    return render_page(
        "review.html.j2", values, folder=Path(__file__).parent,
        scripts=("page.js", "review.js"), styles=("review.css",), served=True,
    )  # fmt: skip


def serve(
    folder: RunFolder,
    session: ReviewSession,
    opening: Opening,
    *,
    report: Callable[[str], None],
    opened: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C; a second signal does not wait for requests under way.

    `report` gets lines for the person at the terminal, `opened` what a browser is to open, once it answers.
    """
    listener, token = _listening(folder, opening)
    try:
        page = render_review(folder, session)
        local = opening.host in LOOPBACK
        door = folder.path.resolve() / DOOR
        app = build_app(session, page, token=token, hosts=() if local else (opening.host,))
        where = f"{endpoint_of(listener)}/?token={token}"
        if opening.reviewer:
            where += f"&reviewer={quote(opening.reviewer, safe='')}"

        def started() -> None:
            report(f"open {where}")
            if not local:
                report("warning: other machines may reach this address, and what passes is not encrypted")
            report(_NAMED if opening.reviewer else _NAMELESS)
            report("Ctrl-C ends; every answer is kept, and the same command goes on at the same URL")
            _write_private(
                door, f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(where)}">'
            )
            opened(door.as_uri())

        uvloop.run(HttpServer(app, started=started).serve([listener]))
    finally:
        listener.close()
        (folder.path / DOOR).unlink(missing_ok=True)


def _write_private(path: Path, text: str) -> None:
    """Replace a file that its owner alone can read."""
    with atomic.replacing(path, mode=0o600) as part:
        part.write_text(text, encoding="utf-8")


def _listening(folder: RunFolder, opening: Opening) -> tuple[socket.socket, str]:
    """Listen where the last start did, if that is free, and return its token; keep both for the next one."""
    token, port = _remembered(folder)
    listener = None
    if not opening.port and port:
        with suppress(ServingError):  # taken meanwhile; any other will do
            listener = listen(opening.host, port)
    listener = listener or listen(opening.host, opening.port)
    try:
        kept = {"token": token, "port": listener.getsockname()[1]}
        _write_private(folder.path / REMEMBERED, json.dumps(kept))
    except BaseException:
        listener.close()
        raise
    return listener, token


_NAMED = "more reviewers open the same URL with another name after reviewer="
_NAMELESS = "each reviewer opens this URL and types a name, or has it in the URL: ...&reviewer=NAME"


def next_command(folder: RunFolder) -> str:
    """Return what gives the reviewed labels to the run: its own recipe holds every setting."""
    out = shlex.quote(str(folder.path))
    if isinstance(folder, LabelFolder):
        return f"selftrain act export {out} --out labelled.jsonl"
    if (folder.path / "quickstart-data").is_dir():
        return f"selftrain quickstart --out {out}"
    return f"selftrain run {shlex.quote(str(folder.recipe_path))} --out {out}"


def _remembered(folder: RunFolder) -> tuple[str, int]:
    """Read token and port of the last start; a new token and 0 where there was none."""
    try:
        kept = read_json(folder.path / REMEMBERED)
        token, port = kept.get("token"), kept.get("port")
    except (OSError, ValueError, AttributeError):
        token, port = None, 0
    if not (isinstance(token, str) and _TOKEN.fullmatch(token) and isinstance(port, int)):
        return secrets.token_urlsafe(32), 0
    return token, port

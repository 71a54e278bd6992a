"""``selftrain data``: manifests checked, published data sets made into them, tasks to begin with."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from selftrain.cli.commands import noun
from selftrain.cli.options import Columns, Manifest, read_columns
from selftrain.cli.printing import print_some, say
from selftrain.data.duplicates import DuplicateGroup, conflicting_labels, find_duplicates
from selftrain.data.importers import IMPORTERS, import_named
from selftrain.data.manifest import ManifestReport, read_manifest
from selftrain.data.posts import Post
from selftrain.data.task import load_task
from selftrain.data.templates import load_template, template_file, template_names, write_template
from selftrain.errors import TaskError

app = noun("Check manifests, import published data sets, begin with a task.")


@app.command(
    help="Check a manifest: bad rows, counts, copies.\n\nExit status 1 where a row is bad.",
    epilog="Example: selftrain data check posts.jsonl --task task.toml",
)
def check(
    manifest: Manifest,
    *,
    columns: Columns,
    task: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The task; labels and answers must be its own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    no_duplicates: Annotated[
        bool, typer.Option("--no-duplicates", help="Do not look for copies, which hashes images.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Threads that hash images.")] = 0,
) -> int:
    """Print what is in a manifest and what is wrong with it; 1 when a row is bad, else 0.

    Raises:
        ManifestError: The manifest cannot be read at all.
        TaskError: The task file is none.
    """
    report = read_manifest(manifest, None if task is None else load_task(task), columns=read_columns(columns))
    shown = sys.stderr.isatty() and not as_json
    copies = [] if no_duplicates else find_duplicates(report.posts, workers=workers, progress=shown)
    conflicts = [] if no_duplicates else conflicting_labels(report.posts)
    if as_json:
        print(json.dumps(_document(report, copies, conflicts), ensure_ascii=False, indent=2))
    else:
        _print_report(report, None if no_duplicates else copies, conflicts)
    return 1 if report.problems else 0


@app.command(
    "import",
    help="Make a manifest and a task of a published data set.\n\n"
    "You fetch the files yourself, under their own terms.",
    epilog="Example: selftrain data import hsol labeled_data.csv --out data/hsol",
)
def import_published(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help=", ".join(IMPORTERS), autocompletion=lambda: list(IMPORTERS)),
    ],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The folder, or file, as published.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for manifest, task and images.")],
    allow_missing_images: Annotated[
        bool,
        typer.Option("--allow-missing-images", help="Keep the text of posts whose image is not there."),
    ] = False,
    decode_entities: Annotated[
        bool,
        typer.Option("--decode-entities", help="Write HTML entities (&amp;) as what they stand for."),
    ] = False,
) -> None:
    """Import a published data set and say what was written and what was left out.

    Raises:
        ManifestError: Unknown name, or the files are not there.
    """
    done = import_named(
        name, source, out, allow_missing_images=allow_missing_images, decode_entities=decode_entities
    )
    say(f"{done.posts:,} posts in {done.manifest}, their task in {done.task}")
    if done.text_only:
        say(f"{done.text_only:,} images are missing: those posts have their text only")
    if done.entities:
        what = "decoded" if decode_entities else "left as they are written; --decode-entities decodes them"
        say(f"{done.entities:,} texts hold HTML entities: {what}")
    for note in done.notes:
        say(f"note: {note}")
    if done.skipped:
        say(f"{sum(one.rows for one in done.skipped):,} rows left out:")
        print_some([f"  line {one.line}, id {one.post_id!r}: {one.reason}" for one in done.skipped])


@app.command(
    help="List the tasks that come with questions, print one, or write one to begin with.",
    epilog="Example: selftrain data tasks hateful-memes --out task.toml",
)
def tasks(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="One of them.", autocompletion=template_names)
    ] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there, instead of printing it.")
    ] = None,
) -> None:
    """List the templates, print one, or write one.

    Raises:
        TaskError: There is no such task, or none is named to be written.
        StorageError: It cannot be written.
    """
    if not name and out is not None:
        raise TaskError(f"--out says where to write, but not which task: name one of {template_names()}")
    if not name:
        _list_tasks(template_names())
    elif out is None:
        print(template_file(name).read_text(encoding="utf-8"), end="")
    else:
        task = write_template(name, out)
        say(f"{out}: {len(task.classes)} classes, {len(task.questions)} questions; edit it as you like")


def _list_tasks(names: Sequence[str]) -> None:
    for name in names:
        task = load_template(name)
        print(f"{name}: {' or '.join(task.names)}")
        for question in task.questions:
            rule = "" if question.counting is None else f" (counted: {question.counting})"
            print(f"  {question.name}: {' / '.join(question.answers)}{rule}")


def _counts(report: ManifestReport) -> dict[str, int]:
    """Return how many posts there are of each make."""
    posts = report.posts
    return {
        "text only": sum(not post.images and post.video is None for post in posts),
        "images only": sum(bool(post.images) and not post.text.strip() for post in posts),
        "text and images": sum(bool(post.images and post.text.strip()) for post in posts),
        "several images": sum(len(post.images) > 1 for post in posts),
        "videos": sum(post.video is not None for post in posts),
    }


def _document(
    report: ManifestReport, copies: list[DuplicateGroup], conflicts: list[tuple[Post, ...]]
) -> dict[str, Any]:
    return {
        "manifest": str(report.path),
        "rows": report.rows,
        "posts": len(report.posts),
        "labels": {
            label: count for label, count in sorted(report.counts.items(), key=str) if label is not None
        },
        "unlabelled": report.counts.get(None, 0),
        "makes": _counts(report),
        "problems": [problem._asdict() for problem in report.problems],
        "notes": [note._asdict() for note in report.notes],
        "duplicates": [group._asdict() for group in copies],
        "conflicts": [{post.id: post.label for post in group} for group in conflicts],
    }


def _print_report(
    report: ManifestReport, copies: list[DuplicateGroup] | None, conflicts: list[tuple[Post, ...]]
) -> None:
    say(f"{report.path}: {report.rows:,} rows, {len(report.posts):,} posts, {report.set_aside:,} set aside")
    for label, count in sorted(report.counts.items(), key=str):
        say(f"  {'no label' if label is None else label}: {count:,}")
    say("  " + ", ".join(f"{make}: {count:,}" for make, count in _counts(report).items()))
    if report.problems:
        say("set aside:")
        print_some(
            [f"  line {one.line}, id {one.post_id!r}: {one.reason}; {one.remedy}" for one in report.problems]
        )
    if report.notes:
        say("how it was read:")
        print_some([f"  {note}" for note in report.notes])
    if conflicts:
        say(f"copies with different labels: {len(conflicts):,}")
        print_some(
            ["  " + ", ".join(f"{post.id} {post.label!r}" for post in group[:6]) for group in conflicts]
        )
    if copies is not None:
        say(f"groups of copies: {len(copies):,}")
        print_some([f"  {group.kind}: {', '.join(group.ids[:6])} ({group.detail})" for group in copies])

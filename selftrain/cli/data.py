"""``selftrain data``: manifests checked, published data sets made into them, tasks to begin with."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from selftrain._util.deferred import deferred
from selftrain._util.object_urls import url_or_path
from selftrain._util.printable import printable
from selftrain.cli.commands import noun
from selftrain.cli.options import Columns, Manifest, argument, option, read_columns, written
from selftrain.cli.printing import echo, print_some
from selftrain.errors import TaskError

with deferred():
    from selftrain.data import duplicates, importers, matching, posts, templates
    from selftrain.data import manifest as manifests
    from selftrain.data import task as task_files

app = noun("Check manifests, import published data sets, begin with a task.")


@app.command(epilog="Example: selftrain data check posts.jsonl --task task.toml")
def check(
    manifest: Manifest,
    *,
    columns: Columns,
    task: Annotated[
        Path | None, option("The task; labels and answers must be its own.", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, option("Print one JSON object.", "--json")] = False,
    no_duplicates: Annotated[
        bool, option("Do not look for copies; pictures are decoded all the same.", "--no-duplicates")
    ] = False,
    workers: Annotated[int, option("Threads that decode images.", min=0, metavar="N")] = 0,
) -> int:
    """Check a manifest: bad rows, those included whose pictures cannot be decoded; counts, copies.

    Exit status 1 where a row is bad.
    """
    report = manifests.read_manifest(
        manifest, None if task is None else task_files.load_task(task), columns=read_columns(columns)
    )
    shown = sys.stderr.isatty() and not as_json
    pictures = {path for post in report.posts for path in post.images}
    hashed = matching.decode_and_hash(pictures, workers=workers, progress=shown)
    report = report.without_pictures(hashed.unread)
    copies = [] if no_duplicates else duplicates.find_duplicates(report.posts, hashes=hashed.hashes)
    conflicts = [] if no_duplicates else duplicates.conflicting_labels(report.posts)
    if as_json:
        print(json.dumps(_document(report, copies, conflicts), indent=2))
    else:
        _print_report(report, None if no_duplicates else copies, conflicts)
    return 1 if report.problems else 0


@app.command("import", epilog="Example: selftrain data import hsol labeled_data.csv --out data/hsol")
def import_published(
    name: Annotated[
        str,
        argument(
            "NAME",
            "hsol, sentiment140, tweeteval-emotion, tweeteval-offensive, harmeme, hateful-memes or mami.",
            autocompletion=lambda: list(importers.IMPORTERS),
        ),
    ],
    source: Annotated[Path, argument("SOURCE", "The folder, or file, as published.")],
    out: Annotated[Path, option("Folder for manifest, task and images.", metavar="DIR")],
    allow_missing_images: Annotated[
        bool, option("Keep the text of posts whose image is not there.", "--allow-missing-images")
    ] = False,
    decode_entities: Annotated[
        bool, option("Write HTML entities (&amp;) as what they stand for.", "--decode-entities")
    ] = False,
) -> None:
    """Make a manifest and a task of a published data set.

    You fetch the files yourself, under their own terms.
    """
    done = importers.import_named(
        name, source, out, allow_missing_images=allow_missing_images, decode_entities=decode_entities
    )
    echo(f"{done.posts:,} posts in {done.manifest}, their task in {done.task}")
    if done.text_only:
        echo(f"{done.text_only:,} images are missing: those posts have their text only")
    if done.entities:
        what = "decoded" if decode_entities else "left as they are written; --decode-entities decodes them"
        echo(f"{done.entities:,} texts hold HTML entities: {what}")
    for note in done.notes:
        echo(f"note: {note}")
    if done.skipped:
        echo(f"{len(done.skipped):,} rows left out:")
        print_some([f"  {one}" for one in done.skipped])


@app.command(epilog="Example: selftrain data tasks hateful-memes --out task.toml")
def tasks(
    name: Annotated[
        str, argument("NAME", "One of them.", autocompletion=lambda: list(templates.template_names()))
    ] = "",
    out: Annotated[Path | None, written("Write it there, instead of printing it.")] = None,
) -> None:
    """List the tasks that come with questions, print one, or write one to begin with."""
    if not name and out is not None:
        raise TaskError(
            f"--out says where to write, but not which task: name one of {templates.template_names()}"
        )
    if not name:
        _list_tasks(templates.template_names())
    elif out is None:
        print(templates.template_file(name).read_text(encoding="utf-8"), end="")
    else:
        task = templates.write_template(name, out)
        echo(f"{out}: {len(task.classes)} classes, {len(task.questions)} questions; edit it as you like")


def _list_tasks(names: Sequence[str]) -> None:
    for name in names:
        task = templates.load_template(name)
        echo(f"{name}: {' or '.join(task.names)}")
        for question in task.questions:
            rule = "" if question.counting is None else f" (counted: {question.counting})"
            echo(f"  {question.name}: {' / '.join(question.answers)}{rule}")


def _counts(report: manifests.ManifestReport) -> dict[str, int]:
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
    report: manifests.ManifestReport,
    copies: list[duplicates.DuplicateGroup],
    conflicts: list[tuple[posts.Post, ...]],
) -> dict[str, Any]:
    return {
        "manifest": url_or_path(report.path),
        "rows": report.rows,
        "posts": len(report.posts),
        "labels": {label: n for label, n in sorted(report.counts.items(), key=str) if label is not None},
        "unlabelled": report.counts.get(None, 0),
        "makes": _counts(report),
        "problems": [problem._asdict() for problem in report.problems],
        "notes": [note._asdict() for note in report.notes],
        "duplicates": [group._asdict() for group in copies],
        "conflicts": [{post.id: post.label for post in group} for group in conflicts],
    }


def _print_report(
    report: manifests.ManifestReport,
    copies: list[duplicates.DuplicateGroup] | None,
    conflicts: list[tuple[posts.Post, ...]],
) -> None:
    counts = f"{report.rows:,} rows, {len(report.posts):,} posts, {report.set_aside:,} set aside"
    echo(f"{printable(url_or_path(report.path))}: {counts}")
    for label, count in sorted(report.counts.items(), key=str):
        echo(f"  {'no label' if label is None else printable(label)}: {count:,}")
    echo("  " + ", ".join(f"{make}: {count:,}" for make, count in _counts(report).items()))
    if report.problems:
        echo("set aside:")
        print_some([f"  {one}" for one in report.problems])
    if report.notes:
        echo("how it was read:")
        print_some([f"  {note}" for note in report.notes])
    if conflicts:
        echo(f"copies with different labels: {len(conflicts):,}")
        print_some(
            ["  " + ", ".join(f"{post.id} {post.label!r}" for post in group[:6]) for group in conflicts]
        )
    if copies is not None:
        echo(f"groups of copies: {len(copies):,}")
        print_some([f"  {group.kind}: {', '.join(group.ids[:6])} ({group.detail})" for group in copies])

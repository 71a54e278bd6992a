"""``selftrain check`` and ``selftrain import``: manifests checked, published data sets made into them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selftrain.data.duplicates import DuplicateGroup
    from selftrain.data.manifest import ManifestReport

_LISTED = 20


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds both commands; each sets `handler`, from arguments to exit status."""
    check = subparsers.add_parser("check", help="check a manifest: bad rows, counts, copies")
    check.add_argument("manifest", type=Path, help="JSON lines, CSV or Parquet")
    check.add_argument("--task", type=Path, help="the task file; labels and answers must be its own")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.add_argument(
        "--no-duplicates", action="store_true", help="do not look for copies, which hashes images"
    )
    check.add_argument("--workers", type=int, default=0, help="threads that hash images (default: none)")
    check.set_defaults(handler=run_check)
    imported = subparsers.add_parser("import", help="make a manifest and a task of a published data set")
    imported.add_argument("name", help="hsol, sentiment140, harmeme, hateful-memes or mami")
    imported.add_argument("source", type=Path, help="the folder, or file, that was published")
    imported.add_argument("--out", type=Path, required=True, help="folder for manifest, task and images")
    imported.add_argument(
        "--allow-missing-images", action="store_true", help="keep the text of posts whose image is not there"
    )
    imported.set_defaults(handler=run_import)


def run_check(args: argparse.Namespace) -> int:
    """Prints what is in a manifest and what is wrong with it; 1 when a row is bad, else 0.

    Raises:
        ManifestError: The manifest cannot be read at all.
        TaskError: The task file is none.
    """
    from selftrain.data.duplicates import find_duplicates
    from selftrain.data.manifest import read_manifest
    from selftrain.data.task import load_task

    task = None if args.task is None else load_task(args.task)
    report = read_manifest(args.manifest, task)
    shown = sys.stderr.isatty() and not args.json
    copies = [] if args.no_duplicates else find_duplicates(report.posts, workers=args.workers, progress=shown)
    if args.json:
        print(json.dumps(_document(report, copies), ensure_ascii=False, indent=2))
    else:
        _print_report(report, None if args.no_duplicates else copies)
    return 1 if report.problems else 0


def run_import(args: argparse.Namespace) -> int:
    """Imports a published data set and says what was written and what was left out.

    Raises:
        ManifestError: Unknown name, or the files are not there.
    """
    from selftrain.data.importers import import_named

    done = import_named(args.name, args.source, args.out, allow_missing_images=args.allow_missing_images)
    print(f"{done.posts:,} posts in {done.manifest}, their task in {done.task}")
    if done.text_only:
        print(f"{done.text_only:,} images are missing: those posts have their text only")
    for note in done.notes:
        print(f"note: {note}")
    if done.skipped:
        print(f"{len(done.skipped):,} rows left out:")
        _print_some([f"  line {one.line}, id {one.post_id!r}: {one.reason}" for one in done.skipped])
    return 0


def _counts(report: ManifestReport) -> dict[str, int]:
    """How many posts there are of each make."""
    posts = report.posts
    return {
        "text only": sum(not post.images for post in posts),
        "images only": sum(not post.text.strip() for post in posts),
        "text and images": sum(bool(post.images and post.text.strip()) for post in posts),
        "several images": sum(len(post.images) > 1 for post in posts),
    }


def _document(report: ManifestReport, copies: list[DuplicateGroup]) -> dict[str, Any]:
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
        "duplicates": [group._asdict() for group in copies],
    }


def _print_report(report: ManifestReport, copies: list[DuplicateGroup] | None) -> None:
    print(
        f"{report.path}: {report.rows:,} rows, {len(report.posts):,} posts, "
        f"{len(report.problems):,} set aside"
    )
    for label, count in sorted(report.counts.items(), key=str):
        print(f"  {'no label' if label is None else label}: {count:,}")
    print("  " + ", ".join(f"{make}: {count:,}" for make, count in _counts(report).items()))
    if report.problems:
        print("set aside:")
        _print_some(
            [f"  line {one.line}, id {one.post_id!r}: {one.reason}; {one.remedy}" for one in report.problems]
        )
    if copies is not None:
        print(f"groups of copies: {len(copies):,}")
        _print_some([f"  {group.kind}: {', '.join(group.ids[:6])} ({group.detail})" for group in copies])


def _print_some(lines: list[str]) -> None:
    for line in lines[:_LISTED]:
        # what a manifest holds is data: no control character of it reaches the terminal
        print("".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in line))
    if len(lines) > _LISTED:
        print(f"  and {len(lines) - _LISTED:,} more")

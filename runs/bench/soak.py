"""`python -m runs.bench soak`: what hours of work leave behind in memory, open files and on disk.

Eight hours are compressed in time: as many requests for scores as a calm server gets in them, one every four
seconds, and as many rounds as a loop does, one every five minutes, one right after the other. What a process
holds after the first tenth is what it needs; what it holds at the end over that is what it has lost.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from runs.bench.serve import ask, bodies_of_a_run, serve_command, serving
from runs.bench.study import Figure, Figures
from selftrain.data.drawn import draw_posts
from selftrain.errors import DataError
from selftrain.runs import start

PARTS = ("serve", "rounds")
TENTHS = 10
AT_ONCE = 4
SETTLED = 1.0
"""Seconds after the last answer, behind which its pictures are removed."""
RECIPE = """
seed = 1
[data]
manifest = "data/manifest.jsonl"
task = "data/task.toml"
labelled = 60
[backbone]
cache = "cache"
[selection]
k = 4
[rounds]
max = {rounds}
patience = {rounds}
"""


class Held(NamedTuple):
    """What a process holds, its children counted: MB of memory, open files, bytes on disk."""

    memory: float
    files: int
    disk: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--parts", default=",".join(PARTS), help="by commas (default: both)")
    parser.add_argument("--requests", type=int, default=7200, help="for scores (default: 7200)")
    parser.add_argument("--rounds", type=int, default=96, help="of a loop (default: 96)")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure, and print the figures.

    Raises:
        DataError: A part that is not known, or too few requests or rounds for tenths.
    """
    parts = args.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise DataError(f"--parts {unknown[0]}: expected some of {', '.join(PARTS)}")
    if min(args.requests, args.rounds) < TENTHS:
        raise DataError(f"--requests {args.requests} --rounds {args.rounds}: expected {TENTHS} at least")
    for part in parts:
        size = args.requests if part == "serve" else args.rounds
        if figures.has("soak", part, size, 0):
            continue
        with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as name:
            tenths = (_requests if part == "serve" else _rounds)(Path(name), size)
        figures.add([Figure("soak", "drawn", part, size, 0, *item) for item in _compared(part, tenths)])
    print("\n".join(figures.table()))


def _compared(part: str, tenths: list[Held]) -> Iterator[tuple[str, float]]:
    for number, held in enumerate(tenths, 1):
        print(f"{part}, {number}/{TENTHS}: {held.memory:.0f} MB, {held.files} files, {held.disk:,} bytes")
    first, last = tenths[0], tenths[-1]
    yield "memory at the end over after a tenth", last.memory / first.memory
    yield "open files at the end over after a tenth", last.files / first.files
    yield "bytes on disk at the end over after a tenth", last.disk / max(first.disk, 1)


def _requests(folder: Path, count: int) -> list[Held]:
    """Score posts, a few at once; disk is what the server keeps of requests."""
    bodies = bodies_of_a_run(folder)
    scratch = folder / "scratch"
    scratch.mkdir()

    async def client(port: int, numbers: Iterable[int]) -> None:
        for number in numbers:
            status = await ask(port, b"POST /score", random.Random(number).choice(bodies))
            if status != 200:
                raise DataError(f"request {number} was answered with {status}; expected 200")

    async def all_of_them() -> list[Held]:
        tenths = []
        async with serving(*serve_command(folder / "run"), TMPDIR=str(scratch)) as (port, process):
            for _ in tqdm(range(TENTHS), desc="tenths of the requests"):
                each = range(count // TENTHS)
                await asyncio.gather(*(client(port, each[n::AT_ONCE]) for n in range(AT_ONCE)))
                await asyncio.sleep(SETTLED)
                tenths.append(_held(process, scratch))
        return tenths

    return asyncio.run(all_of_them())


def _rounds(folder: Path, count: int) -> list[Held]:
    """Do the rounds in this process; disk is what a tenth of them has added to the run's folder."""
    draw_posts(folder / "data", 4 * count + 500)
    (folder / "recipe.toml").write_text(RECIPE.format(rounds=count))
    tenths, before = list[Held](), 0
    for number, _ in enumerate(start(folder / "recipe.toml", folder / "run").rounds()):
        if number and number % (count // TENTHS) == 0:
            held = _held(os.getpid(), folder / "run")
            tenths.append(held._replace(disk=held.disk - before))
            before = held.disk
    return tenths


def _held(process: int, folder: Path) -> Held:
    memory, files = 0.0, 0
    for one in _family(process):
        status = Path(f"/proc/{one}/status").read_text(encoding="utf-8")
        memory += int(status.partition("VmRSS:")[2].split()[0]) / 1000
        files += sum(1 for _ in Path(f"/proc/{one}/fd").iterdir())
    return Held(memory, files, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def _family(process: int) -> list[int]:
    """Return a process and all that it has begun."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()
    return [process, *(found for child in children for found in _family(int(child)))]

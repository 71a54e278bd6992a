"""`python -m runs.bench serve`: how long honest clients wait while hostile ones attack the server.

64 clients score one post each, one after the other, on a `selftrain serve` of a real model: first alone, then
beside 20 that do what a server is afraid of. The figure is the 99th percentile of an honest wait under attack
over that of calm, and how many honest requests were not answered with a score. Clients have addresses of
their own and, where there are two cores, none of the server's: they would be other machines.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runs.bench.study import Figure, Figures
from selftrain.data.drawn import draw_posts
from selftrain.errors import DataError
from selftrain.runs import run as run_recipe

HONEST, HOSTILE = 64, 20
OVER_CALM = "attacked over calm"
RECIPE = """
seed = 1
[data]
manifest = "data/manifest.jsonl"
task = "data/task.toml"
labelled = 20
[backbone]
cache = "cache"
[selection]
k = 10
[rounds]
max = 1
"""
ANSWER_SECONDS = 120.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--seconds", type=float, default=30.0, help="of calm, and of attack (default: 30)")
    parser.add_argument("--repeats", type=int, default=2, help="pairs of both (default: 2)")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure the pairs that --json does not hold yet, and print all.

    Raises:
        DataError: The server does not start.
    """
    todo = [n for n in range(args.repeats) if not figures.has("serve", OVER_CALM, HOSTILE, n)]
    if todo:
        cores = halves()  # before this process gives up the server's
        with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as name:
            folder = Path(name)
            bodies = bodies_of_a_run(folder)
            for repeat in todo:
                pair = asyncio.run(_measure(folder, bodies, args.seconds, cores))
                figures.add(list(_figures(repeat, *pair)))
    print("\n".join(figures.table()))


def _figures(repeat: int, calm: Waits, attacked: Waits) -> Iterator[Figure]:
    """Yield those of a pair; the ratio comes last, and says that the others are there."""
    for method, found in (("calm", calm), ("attacked", attacked)):
        values = {"p50": found.at(50), "p99": found.at(99), "errors": found.errors, "health": found.health}
        for metric, value in values.items():
            yield Figure("serve", "drawn", method, HONEST, repeat, metric, float(value))
    yield Figure("serve", "drawn", OVER_CALM, HOSTILE, repeat, "p99", attacked.at(99) / calm.at(99))


def bodies_of_a_run(folder: Path) -> list[bytes]:
    """Train a model in `folder` / "run", and return a request for each of its posts."""
    return [_body(row, folder / "data") for row in train_on_drawn(folder)]


def train_on_drawn(folder: Path, posts: int = 300) -> list[dict[str, Any]]:
    """Train a model in `folder` / "run", and return the rows of its posts, pictures beside them in "data"."""
    draw_posts(folder / "data", posts)
    (folder / "recipe.toml").write_text(RECIPE)
    run_recipe(folder / "recipe.toml", out=folder / "run")
    return [json.loads(line) for line in (folder / "data" / "manifest.jsonl").read_text().splitlines()]


def _body(row: dict[str, Any], folder: Path) -> bytes:
    images = [base64.b64encode((folder / name).read_bytes()).decode() for name in row.get("images", [])]
    return json.dumps({"id": row["id"], "text": row.get("text", ""), "images": images}).encode()


class Waits(NamedTuple):
    """What honest clients met.

    Attributes:
        waits: Seconds from a request to its scores, of each.
        errors: Requests without.
        health: Longest wait for /health, seconds.
    """

    waits: list[float]
    errors: int
    health: float

    def at(self, percentile: float) -> float:
        """Return the seconds that so many per cent wait at most."""
        return float(np.percentile(self.waits, percentile))

    def told(self) -> str:
        """Return the figures in a line."""
        return (
            f"{len(self.waits):,} posts, median {self.at(50):.3f} s, p99 {self.at(99):.3f} s,"
            f" {self.errors} errors, /health {self.health:.3f} s at most"
        )


def halves() -> tuple[set[int], set[int]]:
    """Return the server's half of this process's cores, and the clients'; a single core is of both."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    return set(cores[:half] or cores), set(cores[half:])


async def _measure(
    folder: Path, bodies: list[bytes], seconds: float, cores: tuple[set[int], set[int]]
) -> tuple[Waits, Waits]:
    async with serving(*serve_command(folder / "run"), cores=cores[0]) as (port, _):
        os.sched_setaffinity(0, cores[1])  # and of the hostile ones, which this process starts
        await _wait(port, bodies, seconds / 5)  # warm
        calm = await _wait(port, bodies, seconds)
        print(f"calm: {calm.told()}", flush=True)
        # in a process of their own: what they send must not keep the honest ones from looking at the clock
        attackers = multiprocessing.get_context("spawn").Process(
            target=_attack_all, args=(port,), daemon=True
        )
        attackers.start()
        try:
            await asyncio.sleep(5)  # it starts, and draws its pictures
            attacked = await _wait(port, bodies, seconds)
        finally:
            attackers.kill()
            attackers.join()
        print(f"attacked: {attacked.told()}", flush=True)
    return calm, attacked


def serve_command(model: Path) -> tuple[str, ...]:
    """Return the words after Python's that serve a model."""
    return "-m", "selftrain", "serve", str(model), "--port", "0"


@asynccontextmanager
async def serving(
    *command: str, cores: Iterable[int] = (), **variables: str
) -> AsyncIterator[tuple[int, int]]:
    """Let a `command` of Python's serve, in a process of its own, on some `cores` or all.

    Gives the port and the process's number.
    """
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE, text=True, env=os.environ | variables | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None, "it is a pipe"
    if cores:
        os.sched_setaffinity(process.pid, cores)
    try:
        port = 0
        for line in process.stdout:
            if found := re.match(r"listening on http://127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
            if line.startswith("ready"):
                break
        else:
            raise DataError(f"the server ended with {process.wait()} before it was ready")
        yield port, process.pid
    finally:
        for _ in range(2):  # what hostile ones have left is not waited for
            process.terminate()
            await asyncio.sleep(1)
        process.wait()


# ---- honest ones ---------------------------------------------------------------------------------------


async def _wait(port: int, bodies: list[bytes], seconds: float) -> Waits:
    """Let the honest clients score posts for so long."""
    found = Waits([], 0, 0.0)
    until = time.monotonic() + seconds
    errors = [0]
    longest = [0.0]

    async def client(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < until:
            began = time.monotonic()
            status = await ask(port, b"POST /score", draw.choice(bodies), f"127.0.1.{number + 1}")
            if status == 200:
                found.waits.append(time.monotonic() - began)
            else:
                errors[0] += 1

    async def probe() -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            await ask(port, b"GET /health")
            longest[0] = max(longest[0], time.monotonic() - began)
            await asyncio.sleep(0.1)

    await asyncio.gather(probe(), *(client(number) for number in range(HONEST)))
    return found._replace(errors=errors[0], health=longest[0])


async def ask(port: int, what: bytes, body: bytes = b"", source: str = "127.0.0.1") -> int:
    """Ask from an address of this machine; return the status of the answer, read to its end, 0: none came."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            try:
                writer.write(_head(what, f"Content-Length: {len(body)}") + body)
                await writer.drain()
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return 0
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def _head(what: bytes, *lines: str) -> bytes:
    told = ("Host: localhost", "Content-Type: application/json", "Connection: close", *lines)
    return what + b" HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in told).encode() + b"\r\n"


# ---- hostile ones --------------------------------------------------------------------------------------


def _attack_all(port: int) -> None:
    """Be all the hostile clients, until killed."""

    async def all_of_them() -> None:
        await asyncio.gather(*(_attack(port, number) for number in range(HOSTILE)))

    asyncio.run(all_of_them())


async def _attack(port: int, number: int) -> None:
    """Do one of the attacks, over and over."""
    attack, prepared = ATTACKS[number % len(ATTACKS)]
    given, source = prepared(), f"127.0.2.{number + 1}"
    while True:
        with suppress(OSError):
            await attack(port, given, source)
        await asyncio.sleep(0.01)


async def _score(port: int, body: bytes, source: str) -> None:
    await ask(port, b"POST /score", body, source)


async def _half_open(port: int, begun: bytes, source: str) -> None:
    writers = []
    try:
        for _ in range(200):
            _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            writer.write(begun)
            writers.append(writer)
        await asyncio.sleep(1)
    finally:
        for writer in writers:
            writer.close()


async def _dribble(port: int, head: bytes, source: str) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        for place in range(len(head)):
            writer.write(head[place : place + 1])
            await writer.drain()
            await asyncio.sleep(0.1)
    finally:
        writer.close()


async def _leave(port: int, body: bytes, source: str) -> None:
    """Ask, and go away before the answer."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    writer.write(_head(b"POST /score", f"Content-Length: {len(body)}") + body)
    await writer.drain()
    writer.close()


def _pictures(count: int, form: str = "PNG") -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (7000, 7000)).save(file, form)
    images = [base64.b64encode(file.getvalue()).decode()] * 4
    return json.dumps({"posts": [{"id": str(n), "images": images} for n in range(count)]}).encode()


def _texts() -> bytes:
    return json.dumps({"posts": [{"id": str(n), "text": "word " * 3999} for n in range(256)]}).encode()


def _one_picture() -> bytes:
    whole = json.loads(_pictures(1))
    return json.dumps({"id": "a", "images": whole["posts"][0]["images"][:1]}).encode()


ATTACKS: tuple[tuple[Callable[[int, bytes, str], Awaitable[None]], Callable[[], bytes]], ...] = (
    (_score, lambda: _pictures(4)),
    (_score, _one_picture),
    (_score, _texts),
    (_score, lambda: b'{"posts": [' + b"{}," * 6_000_000 + b"{}]}"),
    (_score, lambda: b'{"id": "' + b"\\u0041" * 3_000_000 + b'"}'),
    (_half_open, lambda: b""),
    (_half_open, lambda: b"POST /score HTTP/1.1\r\nHost: loc"),
    (_dribble, lambda: _head(b"POST /score", "X: " + "y" * 5000)),
    (_leave, _one_picture),
    (_score, lambda: b"[" * 19_000_000),
)
"""What a hostile client does, and what with; two clients do each."""

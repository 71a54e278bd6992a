"""Every command on files and answers of a megabyte that cost more than they look, and on damaged folders.

A command ends in words, with a status, and takes no gigabyte beyond what it began with.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_stub import says
from kill_helpers import SMALL, child
from kill_jobs import AGENTS, LABELLING, MODEL, labelled
from model_server import ModelServer, told

from selftrain.data.drawn import draw_posts

GB = 1_000_000_000
MB = 1_000_000
SECONDS = 60  # of a processor: far more than any refusal takes, far less than reading all of a bomb

FILES = pytest.mark.attack("commands: files of a megabyte")
ANSWERS = pytest.mark.attack("commands: answers of a megabyte")
DAMAGE = pytest.mark.attack("commands: damaged folders")


def parquet_bomb():
    file, text = io.BytesIO(), "x" * 1000
    rows = pa.table({"id": pa.array([str(n) for n in range(20_000)]), "text": pa.array([text] * 20_000)})
    with pq.ParquetWriter(file, rows.schema, compression="zstd") as writer:
        for _ in range(24):
            writer.write_table(rows)
    return file.getvalue()


HOSTILE = {
    "gzip.csv.gz": lambda: gzip.compress(b"id,text\n" + b"1," + b"x" * 900 * MB, 6),
    "rows.jsonl.gz": lambda: gzip.compress(b'{"id": "a", "text": "b"}\n' * 9_000_000, 1),
    "line.csv": lambda: b"id,text\n1," + b"x" * MB,
    "commas.csv": lambda: b"," * MB,
    "quotes.csv": lambda: b"id,text\n" + b'"' * MB,
    "columns.csv": lambda: b",".join(b"c%d" % n for n in range(150_000)) + b"\n" + b"," * 149_999,
    "objects.jsonl": lambda: b"{}\n" * 333_333,
    "list.json": lambda: b"[" + b"{}," * 333_333 + b"{}]",
    "deep.json": lambda: b"[" * MB,
    "deep.jsonl": lambda: b'{"a":' * 200_000,
    "keys.jsonl": lambda: json.dumps({f"k{n}": n for n in range(80_000)}).encode(),
    "digits.jsonl": lambda: b'{"id": ' + b"9" * MB + b"}",
    "exponents.jsonl": lambda: b'{"id": "a", "text": "b", "x": 1e999999999}\n' * 20_000,
    "surrogates.jsonl": lambda: b'{"id": "' + b"\\ud800" * 160_000 + b'", "text": "t"}',
    "parquet.parquet": parquet_bomb,
    "zeros.parquet": lambda: b"PAR1" + bytes(MB) + b"PAR1",
    "table.toml": lambda: b"[" + b"a." * 400_000 + b"b]",
    "arrays.toml": lambda: b"a = " + b"[" * MB,
    "noise.csv": lambda: random.Random(1).randbytes(MB),
}  # fmt: skip

READERS = (
    "data check FILE",
    "data check FILE --task {work}/posts/task.toml",
    "data check {work}/posts/manifest.jsonl --task FILE",
    "run {work}/recipe.toml --set data.manifest=FILE --out {work}/new",
    "run FILE --out {work}/new",
    "predict {work}/run FILE --out {work}/new.jsonl",
    "filter {work}/run --source FILE --sink {work}/new.jsonl --threshold .5",
    "annotate FILE --task {work}/annotation.toml --out {work}/new.jsonl --server SERVER --direct",
    "act annotate FILE --task {work}/posts/task.toml --annotator SERVER --budget 3 --out {work}/new",
    "act select-models FILE --task {work}/posts/task.toml --server SERVER --labelled 4",
    "act train {work}/labels --validation FILE --out {work}/new",
    "review import {work}/labels FILE",
    "agentps train FILE --task {work}/posts/task.toml --out {work}/new",
    "agents prompts {work}/asked.toml --set vlm.prompts=FILE",
)
WORST = ("parquet.parquet", "digits.jsonl")


@pytest.fixture(scope="module")
def server():
    one = ModelServer()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def ask():
    with child("command_child.py") as request:
        yield request


@pytest.fixture(scope="module")
def place(tmp_path_factory, server, ask):
    """A run, a labelling with reviews, and a task with questions."""
    work = tmp_path_factory.mktemp("work")
    labelled(work, server.stub.url)
    recipe = SMALL.replace("posts/manifest.jsonl", "whole/manifest.jsonl")
    (work / "asked.toml").write_text((recipe + AGENTS + MODEL).replace("SERVER", server.stub.url))
    asked = '[[questions]]\nname = "q"\nwording = "?"\nanswers = ["yes", "no"]\n'
    (work / "annotation.toml").write_text((work / "posts" / "task.toml").read_text() + asked)
    (work / "whole.toml").write_text(recipe)
    draw_posts(work / "whole", 130, seed=1)
    for words, status in (("run {work}/whole.toml --out {work}/run", 0), *LABELLING):
        code, shown = started(ask, work, server, words)
        assert code == status, shown["said"]
    return work


def started(ask, work, server, words, **more):
    line = words.replace("{work}", str(work)).replace("SERVER", server.stub.url)
    code, said = ask(argv=line.split(), signal=9, after=600, **more)
    return code, json.loads(said)


def held(code, shown):
    """A command ended by itself, in words, and cost little."""
    assert "Traceback" not in shown["said"], shown["said"][-3000:]
    assert code in (0, 1, 2), (code, shown["said"][-3000:])
    assert shown["grown"] < GB, shown
    assert shown["processor"] < SECONDS, shown
    assert len(shown["said"]) < 20_000, "what is told about a bad file is short"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A function from a name to a hostile file of it, made once."""
    folder = tmp_path_factory.mktemp("hostile")

    def of(name):
        path = folder / name
        if not path.exists():
            path.write_bytes(HOSTILE[name]())
            assert path.stat().st_size < 1.6 * MB
        return path

    return of


def rows(first, second, often):
    """Every pair of both; all but those that `often` takes are of the slow tier."""
    return [
        pytest.param(one, other, marks=() if often(one, other) else pytest.mark.slow)
        for one in first
        for other in second
    ]


@FILES
@pytest.mark.parametrize(
    ("words", "name"), rows(READERS, HOSTILE, lambda words, name: words == READERS[1] or name in WORST)
)
def test_no_file_of_a_megabyte_takes_a_gigabyte(words, name, place, files, server, ask):  # noqa: PLR0917 -- fixtures
    code, shown = started(ask, place, server, words.replace("FILE", str(files(name))))
    for made in place.glob("new*"):
        shutil.rmtree(made) if made.is_dir() else made.unlink()
    held(code, shown)


# ---- answers ---------------------------------------------------------------------------------------------


def usual(body):
    return json.loads(json.dumps(told(body)))


def with_text(text):
    def answer(body):
        made = usual(body)
        made["choices"][0]["message"]["content"] = text
        made["choices"][0]["logprobs"] = None
        return made

    return answer


def with_numbers(number):
    def answer(body):
        text = json.dumps(usual(body))
        return text.replace("-0.3", number).replace(
            '"completion_tokens": 2', f'"completion_tokens": {number}'
        )

    return answer


def with_alternatives(body):
    made = usual(body)
    one = made["choices"][0]["logprobs"]["content"][0]
    one["top_logprobs"] = [{"token": "a", "logprob": -1.0}] * 25_000
    return made


ANSWERS_OF = {
    "deep": lambda _: b"[" * MB,
    "deep text": with_text('{"label":' * 100_000),
    "long rationale": with_text(json.dumps({"rationale": "x" * MB, "label": "invitation"})),
    "many keys": with_text(json.dumps({f"k{n}": n for n in range(60_000)})),
    "surrogates": with_text(json.dumps({"rationale": "\ud800" * 1000, "label": "invitation"})),
    "digits": with_numbers("9" * 100_000),
    "huge": with_numbers("1e400"),
    "nan": with_numbers("NaN"),
    "alternatives": with_alternatives,
    "list": lambda _: b"[" + b"{}," * 333_333 + b"{}]",
    "noise": lambda _: random.Random(1).randbytes(MB),
    "nothing": lambda _: b"",
}
HEAVY = ("digits", "alternatives")
ASKERS = (
    "run {work}/asked.toml --out {work}/new --set vlm.store={work}/new.sqlite --set vlm.retries=0",
    "run {work}/asked.toml --out {work}/new --set vlm.store={work}/new.sqlite --set vlm.retries=0 --estimate",
    "act annotate {work}/posts/manifest.jsonl --task {work}/posts/task.toml --annotator SERVER --budget 3"
    " --out {work}/new --store {work}/new.sqlite",
    "act select-models {work}/posts/manifest.jsonl --task {work}/posts/task.toml --server SERVER"
    " --labelled 8 --strategy log_probability --annotate plain --store {work}/new.sqlite",
    "agents check SERVER",
)


@ANSWERS
@pytest.mark.parametrize(
    ("words", "name"), rows(ASKERS, ANSWERS_OF, lambda words, name: words == ASKERS[2] or name in HEAVY)
)
def test_no_answer_of_a_megabyte_takes_a_gigabyte(words, name, place, server, ask):
    made = ANSWERS_OF[name]

    async def answers(stub, received, writer):
        body = made(received.body) if received.path != "/tokenize" else b"[" * MB
        body = body.encode() if isinstance(body, str) else body
        await says(body)(stub, received, writer)

    before, server.stub.usual = server.stub.usual, answers
    try:
        code, shown = started(ask, place, server, words)
    finally:
        server.stub.usual = before
        for path in place.glob("new*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    held(code, shown)


# ---- damage ----------------------------------------------------------------------------------------------

LOOKS = (
    "show {work}/copy", "report {work}/copy --out {work}/new.html", "compare {work}/copy {work}/copy",
    "predict {work}/copy {work}/posts/manifest.jsonl --out {work}/new.jsonl",
    "run {work}/whole.toml --out {work}/copy",
)  # fmt: skip


def damaged(file, draw):
    """One of six kinds of damage; False where this file has none of it."""
    kind, size = draw.randrange(6), file.stat().st_size
    content = bytearray(file.read_bytes())
    if kind == 0 and size:
        content[draw.randrange(size)] ^= 1 << draw.randrange(8)
    elif kind == 1 and size:
        del content[draw.randrange(size) :]
    elif kind == 2:
        place = draw.randrange(size + 1)
        content[place:place] = draw.randbytes(draw.randrange(1, 100))
    elif kind == 3 and size:
        place = draw.randrange(size)
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    elif kind == 4:
        file.unlink()
        os.mkfifo(file)
        return True
    elif kind == 5:
        file.unlink()
        file.mkdir()
        return True
    if bytes(content) == file.read_bytes():
        return False
    file.write_bytes(content)
    return True


@DAMAGE
@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=() if n < 6 else pytest.mark.slow) for n in range(60)]
)
def test_any_damage_to_any_file_of_a_run_ends_in_words(seed, place, server, ask):
    draw = random.Random(seed)
    kept = sorted(one for one in (place / "run").rglob("*") if one.is_file() and not one.is_symlink())
    tried = 0
    for file in islice(iter(lambda: draw.choice(kept), None), 3):
        for path in (*place.glob("new*"), *place.glob("copy")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(place / "run", place / "copy", symlinks=True)
        if not damaged(place / "copy" / file.relative_to(place / "run"), draw):
            continue
        words = draw.choice(LOOKS)
        code, shown = started(ask, place, server, words)
        tried += 1
        print(file.relative_to(place), words, code, shown["said"][-300:])
        held(code, shown)
    assert tried

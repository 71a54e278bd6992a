"""Predictions of a stream of posts: whole or not there, gone on with, as far as is tolerated."""

from __future__ import annotations

import csv
import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.csv import write_csv
from serving_helpers import TextPredictor

from backbones.progress import LATEST, ProgressBar
from selftrain.cli.printing import write_predictions
from selftrain.data.manifest import Tolerance
from selftrain.engine.mapping import InProcess
from selftrain.errors import (
    ManifestError,
    QuarantineError,
    RunMismatchError,
    RunStateError,
    ServingError,
)
from selftrain.serving import streams
from selftrain.serving.streams import ModelAtWork

ANY = Tolerance(None, None)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 4)


def write_rows(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def posts(count, bad=()):
    return ["{broken\n" if n in bad else {"id": f"p{n}", "text": f"0.{n:02}"} for n in range(count)]


def go(place, target, tolerance=ANY, **options):
    predictor = options.pop("predictor", TextPredictor())
    source = place / "in.jsonl"
    work = ModelAtWork(predictor=predictor, tolerance=tolerance, **options)
    write_predictions(str(target), work, source, done="scored")
    return predictor


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_is_whole_afterwards_and_an_older_one_replaced(tmp_path, capsys):
    write_rows(tmp_path / "in.jsonl", posts(10, bad=(3,)))
    out = tmp_path / "out.jsonl"
    out.write_text("of before")
    go(tmp_path, out)
    assert [row["id"] for row in records(out)] == [f"p{n}" for n in range(10) if n != 3]
    assert records(out)[0]["probabilities"] == {"yes": 0.0, "no": 1.0}
    assert [row["line"] for row in records(tmp_path / "out.jsonl.quarantine.jsonl")] == [4]
    told = capsys.readouterr()
    assert f"9 posts scored in {out}" in told.out
    assert f"1 posts left out, listed in {out}.quarantine.jsonl" in told.err
    write_rows(tmp_path / "in.jsonl", posts(2))
    go(tmp_path, out)
    assert len(records(out)) == 2
    assert not list(tmp_path.glob("*part")) + list(tmp_path.glob("*quarantine*"))


def test_of_standard_output_nothing_is_said_to_be_kept(tmp_path):
    write_rows(tmp_path / "in.jsonl", posts(40, bad=(1, 2, 9, 30)))
    with pytest.raises(QuarantineError, match=r"nothing is kept: the same command .* begins anew"):
        go(tmp_path, "-", Tolerance(2, None))


def test_too_many_bad_rows_stop_it_and_more_tolerance_goes_on_with_what_there_is(tmp_path):
    write_rows(tmp_path / "in.jsonl", posts(40, bad=(1, 2, 9, 30)))
    out = tmp_path / "out.jsonl"
    with pytest.raises(QuarantineError, match=r"3 of 12 posts .* at most 2 rows") as refused:
        go(tmp_path, out, Tolerance(2, None))
    assert "the same command with more tolerance goes on" in str(refused.value)
    assert "--max-bad-rows 3" in str(refused.value)
    assert not out.exists()
    assert len(records(tmp_path / "out.jsonl.part")) == 9
    again = go(tmp_path, out, Tolerance(4, None))
    assert again.calls[0][0] == "0.12"  # nothing is scored twice
    assert [row["id"] for row in records(out)] == [f"p{n}" for n in range(40) if n not in (1, 2, 9, 30)]
    assert len(records(tmp_path / "out.jsonl.quarantine.jsonl")) == 4


def test_a_share_is_judged_at_the_end_and_nothing_is_thrown_away(tmp_path):
    write_rows(tmp_path / "in.jsonl", posts(10, bad=(1, 2, 3)))
    out = tmp_path / "out.jsonl"
    with pytest.raises(QuarantineError, match=r"3 of 10 posts \(30.00%\)"):
        go(tmp_path, out, Tolerance(None, 0.1))
    again = go(tmp_path, out, Tolerance(None, 0.3))
    assert again.calls == []
    assert len(records(out)) == 7


def test_csv_has_one_heading_also_where_it_went_on(tmp_path):
    rows = [{"id": f"p{n}", "text": "fail" if n < 5 else f"0.{n:02}"} for n in range(12)]
    rows[7] = {"id": "=1+1", "text": "0.5"}
    write_rows(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.csv"
    for limit in (4, 9):
        try:
            go(tmp_path, out, Tolerance(limit, None))
        except QuarantineError:
            assert limit == 4
    found = list(csv.DictReader(out.open(newline="")))
    assert len(found) == 7
    assert found[2]["id"] == "'=1+1"
    assert set(found[0]) == {
        "id", "label", "probability", "probabilities.yes", "probabilities.no", "process.many.a",
        "process.many.b", "selftrain.escaped",
    }  # fmt: skip


def test_what_was_begun_with_other_columns_is_refused(tmp_path):
    """The rows are the same, and what was scored is not: half of the file would be of another column."""
    rows = [row | {"body": "0.5"} for row in posts(20)]
    rows[5]["text"] = rows[5]["body"] = ["no text"]
    write_rows(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.jsonl"
    with pytest.raises(QuarantineError):
        go(tmp_path, out, Tolerance(0, None), columns={"text": "body"})
    with pytest.raises(RunMismatchError, match=r"columns: \{'text': 'body'\} until now, None asked for"):
        go(tmp_path, out)
    go(tmp_path, out, columns={"text": "body"})
    assert {row["probability"] for row in records(out)} == {0.5}


def test_what_another_model_or_manifest_began_is_refused(tmp_path):
    write_rows(tmp_path / "in.jsonl", posts(20, bad=(5,)))
    out = tmp_path / "out.jsonl"
    with pytest.raises(QuarantineError):
        go(tmp_path, out, Tolerance(0, None))
    other = TextPredictor()
    other.fingerprint = "e" * 64
    with pytest.raises(RunMismatchError, match=r"give another --out, or remove .*out\.jsonl\.part\*"):
        go(tmp_path, out, predictor=other)
    write_rows(tmp_path / "in.jsonl", posts(20)[1:])
    with pytest.raises(RunMismatchError, match=r"does not begin with the 8 rows .*remove .*part\*"):
        go(tmp_path, out)
    (tmp_path / "out.jsonl.part.progress.json").unlink()
    with pytest.raises(RunStateError, match="that nothing has recorded"):
        go(tmp_path, out)


def test_standard_output_gets_the_lines_and_standard_error_what_was_left_out(tmp_path, capsys):
    write_rows(tmp_path / "in.jsonl", posts(30, bad=range(5, 20)))
    go(tmp_path, "-")
    told = capsys.readouterr()
    assert [json.loads(line)["id"] for line in told.out.splitlines()] == [
        f"p{n}" for n in range(30) if not 5 <= n < 20
    ]
    assert "15 posts left out:" in told.err
    assert "and 5 more" in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_id_that_comes_again_is_set_aside_also_where_it_went_on(tmp_path):
    rows = posts(20)
    rows[9] = {"id": "p3", "text": "0.9"}
    rows[15] = {"id": "p9", "text": ""}
    rows += [{"id": "p1", "text": "0.1"}, {"id": "p9", "text": "0.1"}]
    write_rows(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.jsonl"
    with pytest.raises(QuarantineError, match=r"line 10, id 'p3': id stands already in line 4"):
        go(tmp_path, out, Tolerance(0, None))
    go(tmp_path, out)
    failed = records(tmp_path / "out.jsonl.quarantine.jsonl")
    assert [(one["line"], one["id"]) for one in failed] == [(10, "p3"), (16, "p9"), (21, "p1"), (22, "p9")]
    assert [one["reason"].split(";")[0] for one in failed[1:]] == [
        "neither text nor image", "id stands already in line 2", "id stands already in line 16",
    ]  # fmt: skip
    assert len(records(out)) == 18


def test_a_manifest_without_rows_or_without_the_column_that_was_said_is_refused(tmp_path):
    write_rows(tmp_path / "in.jsonl", [])
    with pytest.raises(ManifestError, match="holds no rows: write at least one"):
        go(tmp_path, tmp_path / "out.jsonl")
    write_rows(tmp_path / "in.jsonl", posts(3))
    work = ModelAtWork(predictor=TextPredictor(), columns={"images": "body"})
    with pytest.raises(ManifestError, match=r"no row of .* has \['body'\]: correct --column"):
        write_predictions(str(tmp_path / "new.jsonl"), work, tmp_path / "in.jsonl", done="scored")
    assert not (tmp_path / "out.jsonl").exists()


def test_workers_that_open_another_model_are_refused(tmp_path):
    other = TextPredictor()
    other.fingerprint = "e" * 64
    write_rows(tmp_path / "in.jsonl", posts(3))
    work = ModelAtWork(predictor=TextPredictor(), engine=InProcess(), load=lambda: other)
    with pytest.raises(ServingError, match="opens the model eeeeeeeeeeee where this process has fff"):
        write_predictions(str(tmp_path / "out.jsonl"), work, tmp_path / "in.jsonl", done="scored")


# ---- files of so many posts -----------------------------------------------------------------------------


def in_files(place, target, rows, tolerance=ANY, predictor=None):
    predictor = predictor or TextPredictor()
    work = ModelAtWork(predictor=predictor, tolerance=tolerance)
    write_predictions(str(target), work, place / "in.jsonl", done="scored", rows=rows)
    return predictor


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("rows", [1, 3, 4, 9, 18, 100])
def test_files_of_so_many_posts_are_the_one_file_in_parts(tmp_path, rows):
    write_rows(tmp_path / "in.jsonl", posts(20, bad=(3, 8)))
    go(tmp_path, tmp_path / "one.jsonl")
    in_files(tmp_path, tmp_path / "parts", rows)
    lines = (tmp_path / "one.jsonl").read_bytes().splitlines(keepends=True)
    assert contents(tmp_path / "parts") == {
        f"part-{number:05}.jsonl": b"".join(lines[first : first + rows])
        for number, first in enumerate(range(0, 18, rows))
    }
    beside = tmp_path / "parts.quarantine.jsonl"
    assert beside.read_bytes() == (tmp_path / "one.jsonl.quarantine.jsonl").read_bytes()
    assert not list(tmp_path.glob("[!.]*.part*"))


def test_where_nothing_could_be_scored_there_is_one_empty_file(tmp_path):
    write_rows(tmp_path / "in.jsonl", posts(5, bad=range(5)))
    in_files(tmp_path, tmp_path / "parts", 2)
    assert contents(tmp_path / "parts") == {"part-00000.jsonl": b""}


@pytest.mark.parametrize("rows", [1, 3, 6, 9, 10, 50])
def test_full_files_are_there_before_the_others_and_a_command_goes_on_behind_them(tmp_path, rows):
    write_rows(tmp_path / "in.jsonl", posts(40, bad=(1, 2, 9, 30)))
    out = tmp_path / "parts"
    with pytest.raises(QuarantineError, match=r"3 of 12 posts"):
        in_files(tmp_path, out, rows, Tolerance(2, None))
    there = contents(out)
    named = {name for name in there if not name.startswith(".")}
    # the last that is full is named with the next commit behind it
    assert named == {f"part-{number:05}.jsonl" for number in range(8 // rows)}
    assert all(there[name].count(b"\n") == rows for name in named)
    (out / f".part-{99:05}.partial").write_text("of a commit that never was")
    again = in_files(tmp_path, out, rows, Tolerance(4, None))
    assert again.calls[0][0] == "0.12"  # nothing is scored twice
    now = contents(out)
    assert {name: now[name] for name in named} == {name: there[name] for name in named}
    go(tmp_path, tmp_path / "one.jsonl")
    assert b"".join(now[name] for name in sorted(now)) == (tmp_path / "one.jsonl").read_bytes()
    assert len(now) == -(-36 // rows)


def test_finished_files_may_be_taken_away_meanwhile(tmp_path):
    write_rows(tmp_path / "in.jsonl", posts(20, bad=(11,)))
    with pytest.raises(QuarantineError):
        in_files(tmp_path, tmp_path / "parts", 3, Tolerance(0, None))
    (tmp_path / "parts" / "part-00000.jsonl").unlink()
    in_files(tmp_path, tmp_path / "parts", 3)
    assert sorted(contents(tmp_path / "parts")) == [f"part-{number:05}.jsonl" for number in range(1, 7)]


def test_another_number_of_posts_a_file_and_a_folder_that_holds_something_are_refused(tmp_path):
    write_rows(tmp_path / "in.jsonl", posts(20, bad=(5,)))
    out = tmp_path / "parts"
    with pytest.raises(QuarantineError):
        in_files(tmp_path, out, 3, Tolerance(0, None))
    before = contents(out)
    with pytest.raises(RunMismatchError, match=r"rows_per_file: 3 until now, 4 asked for"):
        in_files(tmp_path, out, 4)
    assert contents(out) == before
    in_files(tmp_path, out, 3)
    whole = contents(out)
    with pytest.raises(RunStateError, match=r"parts holds files already, and no unfinished command's"):
        in_files(tmp_path, out, 3)
    assert contents(out) == whole
    go_on = tmp_path / "one.jsonl"
    with pytest.raises(QuarantineError):
        go(tmp_path, go_on, Tolerance(0, None))
    with pytest.raises(RunMismatchError, match=r"rows_per_file: None until now, 3 asked for"):
        in_files(tmp_path, go_on, 3)


# ---- how far it is --------------------------------------------------------------------------------------


def totals(monkeypatch):
    """What a bar is told to expect where that is known, in its order."""
    told, expect = [], ProgressBar.expect

    def expected(bar, total):
        told.extend([] if total is None else [total])
        expect(bar, total)

    monkeypatch.setattr(ProgressBar, "expect", expected)
    return told


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "json"])
def test_how_many_rows_there_will_be_is_told_on_the_way(tmp_path, monkeypatch, form):
    told, chance = totals(monkeypatch), random.Random(0)
    monkeypatch.setattr(streams, "CHUNK", 256)
    rows = [{"id": f"p{n}", "text": f"0.5 {'word ' * chance.randint(1, 40)}"} for n in range(9000)]
    source = tmp_path / f"in.{form}"
    if form == "csv":
        write_csv(pa.Table.from_pylist(rows), source)
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    else:
        source.write_text("\n".join(map(json.dumps, rows)) if form == "jsonl" else json.dumps(rows, indent=1))
    work = ModelAtWork(predictor=TextPredictor(), tolerance=ANY)
    write_predictions(str(tmp_path / "out.jsonl"), work, source, done="scored")
    assert told[-1] == LATEST["posts"].total == 9000
    # a list of several lines is read in large parts, which say little
    assert len(told) == 1 if form == "json" else len(told) > 30
    assert all(abs(total - 9000) <= (0 if form == "parquet" else 1350) for total in told)


@pytest.mark.parametrize("compressed", [False, True], ids=["small", "compressed"])
def test_of_what_is_small_or_compressed_nothing_is_expected(tmp_path, monkeypatch, compressed):
    told = totals(monkeypatch)
    content = "".join(json.dumps({"id": f"p{n}", "text": "0.5"}) + "\n" for n in range(50)).encode()
    source = tmp_path / "in.jsonl"
    source.write_bytes(gzip.compress(content) if compressed else content)
    work = ModelAtWork(predictor=TextPredictor(), tolerance=ANY)
    write_predictions(str(tmp_path / "out.jsonl"), work, source, done="scored")
    assert len(records(tmp_path / "out.jsonl")) == 50
    assert told == [50]  # at the end


def test_what_is_left_is_never_less_than_nothing(tmp_path, monkeypatch):
    """Long rows, then short ones; and as many again, which come while it is read."""
    monkeypatch.setattr(streams, "CHUNK", 64)
    left, update = [], ProgressBar.update
    rows = [{"id": f"p{n}", "text": "0.5" + " word" * (2000 if n < 70 else 1)} for n in range(4000)]
    source = write_rows(tmp_path / "in.jsonl", rows)

    def updated(bar, count=1):
        update(bar, count)
        now = LATEST["posts"]
        left.append(None if now.total is None else now.total - now.done)
        if len(left) == 20:
            with source.open("a") as more:
                more.writelines(json.dumps(row | {"id": f"again {row['id']}"}) + "\n" for row in rows)

    monkeypatch.setattr(ProgressBar, "update", updated)
    go(tmp_path, tmp_path / "out.jsonl")
    assert len(records(tmp_path / "out.jsonl")) == 8000
    assert {one is None for one in left} == {False, True}
    assert all(one is None or one >= 0 for one in left)
    assert LATEST["posts"].total == 8000


def test_what_is_left_holds_where_a_command_goes_on(tmp_path, monkeypatch):
    write_rows(tmp_path / "in.jsonl", posts(9000, bad=(1, 7000, 7001)))
    monkeypatch.setattr(streams, "CHUNK", 64)
    with pytest.raises(QuarantineError):
        go(tmp_path, tmp_path / "out.jsonl", Tolerance(1, None))
    told = totals(monkeypatch)
    go(tmp_path, tmp_path / "out.jsonl", Tolerance(3, None))
    assert len(told) > 5
    assert all(abs(total - 9000) <= 900 for total in told)
    assert told[-1] == 9000

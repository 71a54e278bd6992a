"""The promise of `filter`: killed at any time, the same command ends with the same lines; and it streams."""

from __future__ import annotations

import json
import random
import shutil
import signal

import pytest
from kill_helpers import child
from processes import selftrain

from selftrain.cli import main

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def launch():
    """Runs one filter in a process of its own: exit code, and what it told."""
    with child("filter_child.py", light=True) as ask:
        yield lambda source, sink, kill=None, **options: ask(
            source=str(source), sink=str(sink), kill=kill, **options
        )


def write_source(path, rows):
    """Posts that pass, that do not, that fail, and rows that are none."""
    draw = random.Random(3)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = "no number" if number % 17 == 5 else f"{draw.random():.6f}"
            row = {"id": f"p{number}", "text": text, "note": "é" * (number % 5)}
            file.write("{broken\n" if number % 23 == 7 else json.dumps(row, ensure_ascii=False) + "\n")
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory, launch):
    """A source of three chunks and the sink of a filter that was never killed."""
    folder = tmp_path_factory.mktemp("filter")
    source = write_source(folder / "source.jsonl", 150)
    code, words = launch(source, folder / "whole.jsonl", kill=0)
    assert code == 0, words
    told = json.loads(words)
    return folder, source, told["chances"]


def assert_same(folder, sink):
    assert sink.read_bytes() == (folder / "whole.jsonl").read_bytes()
    beside = sink.with_name(f"{sink.name}.quarantine.jsonl")
    assert beside.read_bytes() == (folder / "whole.jsonl.quarantine.jsonl").read_bytes()


def test_the_filter_to_repeat_keeps_what_passes_and_lists_what_failed(place):
    folder, source, chances = place
    expected = []
    for line in source.read_text(encoding="utf-8").splitlines():
        if not line.startswith("{broken") and '"no number"' not in line:
            row = json.loads(line)
            if float(row["text"]) >= 0.5:
                expected.append(row)
    kept = lines(folder / "whole.jsonl")
    assert [{k: v for k, v in row.items() if k != "selftrain"} for row in kept] == expected
    assert {row["selftrain"]["threshold"] for row in kept} == {0.5}
    assert [row["selftrain"]["probability"] for row in kept] == [float(row["text"]) for row in expected]
    failed = lines(folder / "whole.jsonl.quarantine.jsonl")
    assert len(failed) == 16
    assert {one["kind"] for one in failed} == {"row", "post"}
    assert chances > 40


def test_killed_at_every_point_of_writing_the_same_command_ends_the_same(place, launch, tmp_path):
    folder, source, chances = place
    for nth in range(1, chances + 1):
        sink = tmp_path / f"{nth}.jsonl"
        code, words = launch(source, sink, kill=nth)
        assert code == -signal.SIGKILL, (nth, words)
        code, words = launch(source, sink)
        assert code == 0, (nth, words)
        assert json.loads(words)["tally"]["rows"] == 150
        assert_same(folder, sink)


def test_killed_again_and_again_the_same_command_ends_the_same(place, launch, tmp_path):
    folder, source, _ = place
    sink = tmp_path / "sink.jsonl"
    for start in range(20):
        code, words = launch(source, sink, kill=24 + start % 5)
        if code == 0:
            break
        assert code == -signal.SIGKILL, words
    assert start >= 2, "it was killed several times"
    assert code == 0
    assert_same(folder, sink)


def test_a_source_that_grew_is_gone_on_with_and_another_one_refused(place, launch, tmp_path):
    folder, source, _ = place
    grown, sink = tmp_path / "grown.jsonl", tmp_path / "sink.jsonl"
    content = source.read_bytes().splitlines(keepends=True)
    grown.write_bytes(b"".join(content[:90]))
    assert launch(grown, sink)[0] == 0
    grown.write_bytes(b"".join(content))
    assert launch(grown, sink)[0] == 0
    assert_same(folder, sink)
    before = sink.read_bytes()
    changed = [*content[:60], b'{"id": "x", "text": "0.9"}\n', *content[61:]]
    for other in (content[1:], changed, content[:120]):
        grown.write_bytes(b"".join(other))
        code, words = launch(grown, sink)
        assert code == 2
        assert words.startswith("RunMismatchError")
        assert sink.read_bytes() == before
    grown.write_bytes(b"".join(content))
    for change in ({"fingerprint": "b" * 64}, {"threshold": 0.6}):
        code, words = launch(grown, sink, **change)
        assert code == 2
        assert words.startswith("RunMismatchError")
        assert sink.read_bytes() == before


def test_a_sink_that_is_not_the_filters_own_is_not_touched(place, launch, tmp_path):
    folder, source, _ = place
    sink = tmp_path / "mine.jsonl"
    sink.write_text("mine\n")
    code, words = launch(source, sink)
    assert (code, sink.read_text()) == (2, "mine\n")
    assert "nothing has recorded" in words
    for name in ("whole.jsonl", "whole.jsonl.progress.json", "whole.jsonl.quarantine.jsonl"):
        shutil.copy(folder / name, tmp_path / name)
    (tmp_path / "whole.jsonl").write_text("cut\n")
    code, words = launch(source, tmp_path / "whole.jsonl")
    assert code == 2
    assert "has 4 bytes" in words


def test_memory_does_not_grow_with_the_source(launch, tmp_path):
    """200,000 rows, a tenth of what a million would be, in a list of posts take well over 100 MB."""
    used = {}
    for rows in (2_000, 200_000):
        source = write_source(tmp_path / f"{rows}.jsonl", rows)
        code, words = launch(source, tmp_path / f"sink-{rows}.jsonl", commit_seconds=2.0)
        assert code == 0, words
        told = json.loads(words)
        assert told["tally"]["rows"] == rows
        used[rows] = told["memory"]
    assert used[200_000] - used[2_000] < 15_000, used
    assert sum(1 for _ in (tmp_path / "sink-200000.jsonl").open()) > 80_000


def test_the_command_on_a_real_run(small_run, tmp_path, capsys):
    manifest = small_run.parent / "data" / "manifest.jsonl"
    words = ["filter", str(small_run), "--source", str(manifest), "--precision", ".6"]
    first = selftrain(*words, "--sink", tmp_path / "sink.jsonl", "--validation", manifest, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "on 120 validation posts" in first.stdout
    kept = lines(tmp_path / "sink.jsonl")
    labels = [row["label"] for row in kept]
    positives = sum(json.loads(line)["label"] == "invitation" for line in manifest.open())
    # the validation posts are the source: what was promised of them holds to the digit
    precision = labels.count("invitation") / len(labels)
    assert precision >= 0.6
    assert f"precision {precision:.3f}" in first.stdout
    assert f"recall {labels.count('invitation') / positives:.3f}" in first.stdout
    assert f"kept {len(kept)} in" in first.stdout
    other = ["--sink", str(tmp_path / "other.jsonl"), "--precision", "1"]
    assert main([*words, *other, "--validation", str(hopeless(manifest, tmp_path))]) == 2
    assert "no threshold reaches the precision 1" in capsys.readouterr().err
    assert not list(tmp_path.glob("other*"))


def hopeless(manifest, folder):
    """The same post twice, once of each class: no threshold tells them apart."""
    text = next(json.loads(line)["text"] for line in manifest.open() if json.loads(line)["text"])
    file = folder / "hopeless.jsonl"
    rows = [{"id": label, "text": text, "label": label} for label in ("invitation", "advertisement")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_predictions_killed_at_every_point_end_the_same_and_leave_nothing_beside(launch, tmp_path, suffix):
    """Kills in the middle of a line, between two files' moves, and before the progress file is gone."""
    source = write_source(tmp_path / "source.jsonl", 150)
    whole = tmp_path / f"whole.{suffix}"
    code, words = launch(source, whole, kill=0, predict=True)
    assert code == 0, words
    chances = json.loads(words)["chances"]
    assert chances > 30
    rows = whole.read_text().splitlines()
    good = [
        line
        for line in source.read_text().splitlines()
        if not line.startswith("{broken") and "no num" not in line
    ]
    assert len(rows) == len(good) + (suffix == "csv")
    assert f"{len(good)} posts scored" in json.loads(words)["told"]
    for nth in range(1, chances + 1):
        target = tmp_path / f"{nth}.{suffix}"
        code, words = launch(source, target, kill=nth, predict=True)
        assert code == -signal.SIGKILL, (nth, words)
        code, words = launch(source, target, predict=True)
        assert code == 0, (nth, words)
        assert_same_file(target, whole)
        assert_same_file(beside(target), beside(whole))
        names = {path.name for path in tmp_path.iterdir() if path.name.strip(".").startswith(f"{nth}.")}
        assert {one for one in names if not one.endswith((".lock", ".tmp"))} == {
            target.name,
            beside(target).name,
        }


def test_predictions_in_files_killed_at_every_point_end_the_same_and_what_is_there_is_whole(launch, tmp_path):
    """Files that begin and end within a chunk, and files that go on in the next one."""
    rows = 25
    source, single, whole = tmp_path / "source.jsonl", tmp_path / "single.jsonl", tmp_path / "whole"
    write_source(source, 150)
    assert launch(source, single, predict=True)[0] == 0
    code, words = launch(source, whole, kill=0, predict=True, rows=rows)
    assert code == 0, words
    chances = json.loads(words)["chances"]
    assert chances > 50
    expected = {file.name: file.read_bytes() for file in whole.iterdir()}
    kept = single.read_bytes().splitlines(keepends=True)
    assert expected == {
        f"part-{n:05}.jsonl": b"".join(kept[n * rows : (n + 1) * rows]) for n in range(-(-len(kept) // rows))
    }
    assert_same_file(beside(whole), beside(single))
    for nth in range(1, chances + 1):
        target = tmp_path / f"{nth}"
        code, words = launch(source, target, kill=nth, predict=True, rows=rows)
        assert code == -signal.SIGKILL, (nth, words)
        there = {file.name: file.read_bytes() for file in target.glob("part-*.jsonl")}
        assert there.items() <= expected.items(), nth
        code, words = launch(source, target, predict=True, rows=rows)
        # killed behind its last step, nothing is left to be done
        assert code == (2 if nth == chances else 0), (nth, words)
        assert {file.name: file.read_bytes() for file in target.iterdir()} == expected, nth
        assert_same_file(beside(target), beside(whole))
        names = {file.name for file in tmp_path.iterdir() if file.name.strip(".").split(".")[0] == f"{nth}"}
        assert {one for one in names if not one.endswith((".lock", ".tmp"))} == {
            target.name, beside(target).name,
        }  # fmt: skip


def beside(path):
    return path.with_name(f"{path.name}.quarantine.jsonl")


def assert_same_file(found, expected):
    assert found.read_bytes() == expected.read_bytes(), found

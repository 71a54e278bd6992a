"""Damaged files: seen by whoever reads them, with what to do; no traceback, no other result in silence."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest

from selftrain.cli import main
from selftrain.errors import RunStateError
from selftrain.store import checksums
from selftrain.store.run_dir import RunFolder

# what nobody reads results from: locks, curves for TensorBoard, and the page that is drawn from the others
NOT_READ = ("tensorboard", ".lock", "report.html", "candidates.jsonl", "writer.lock")
WAYS = ("cut", "flipped", "doubled", "turned", "empty", "gone")


def damaged(content: bytes, way: str, chance: random.Random) -> bytes:
    """Some bytes damaged in one way: a bit, a line, a word, the end, all."""
    lines = content.splitlines(keepends=True)
    if way == "flipped":
        place = chance.randrange(len(content))
        return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    if way == "doubled" and len(lines) > 1:
        place = chance.randrange(len(lines))
        return b"".join([*lines[: place + 1], *lines[place:]])
    if way == "turned":  # a label for the other
        return re.sub(rb"(notice|invitation|other|complaint|offer)", lambda m: m[0][::-1], content, count=1)
    return b"" if way == "empty" else content[: chance.randrange(1, len(content))]


def copied(small_run: Path, place: Path) -> Path:
    """A copy of the run; its recipe names posts and features where they were."""
    shutil.copytree(small_run, place / "run", symlinks=True)
    return place / "run"


def outcome(capsys, *words) -> tuple[int, str]:
    """The status of a command and what it printed, without paths and times."""
    status = main([str(word) for word in words])
    shown = capsys.readouterr()
    return status, shown.out + shown.err


def results(run: Path, home: Path, capsys) -> dict[str, tuple[int, str]]:
    """What comes of every command that reads a run, resuming it last."""
    posts, out = home / "data" / "manifest.jsonl", run.parent / "out.jsonl"
    found = {
        "predict": outcome(capsys, "predict", run, posts, "--out", out),
        "compare": outcome(capsys, "compare", run, home / "run"),
        "show": outcome(capsys, "show", run, "--disagreements"),
        "status": outcome(capsys, "status", run),
        "report": outcome(capsys, "report", run, "--out", run.parent / "page.html"),
        "resume": outcome(capsys, "run", home / "small.toml", "--out", run),
    }
    made = {"predict": out, "report": run.parent / "page.html", "resume": run / "grown.jsonl"}
    for name, file in made.items():
        status, shown = found[name]
        content = file.read_text() if status == 0 else ""
        if name == "report":  # what it embeds, without the time it was drawn at
            content = "".join(re.findall(r'"rationale": ?"[^"]*"|"label": ?"[^"]*"', content))
        found[name] = status, (content if status == 0 else shown)
    return {name: (status, shown.replace(str(run.parent), "")) for name, (status, shown) in found.items()}


def files_of(run: Path) -> list[str]:
    found = (one for one in sorted(run.rglob("*")) if one.is_file() and one.stat().st_size)
    names = [one.relative_to(run) for one in found]
    return [str(name) for name in names if not set(name.parts) & {*NOT_READ, "best"}]


@pytest.fixture
def whole(small_run, tmp_path_factory, capsys):
    """What the commands give of the run as it is."""
    return results(copied(small_run, tmp_path_factory.mktemp("whole")), small_run.parent, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_no_file_of_a_run_is_damaged_in_silence(way, whole, small_run, tmp_path, capsys):
    """Each file damaged in one way: every command gives what it gave before, or says which file it is."""
    seen = 0
    assert results(copied(small_run, tmp_path), small_run.parent, capsys) == whole
    # a round without metrics.json did not happen: a kill before its end leaves no other trace
    names = [one for one in files_of(small_run) if way != "gone" or not one.endswith("0002/metrics.json")]
    for place, name in enumerate(names):
        run = copied(small_run, tmp_path / str(place))
        before = (run / name).read_bytes()
        after = damaged(before, way, random.Random(name))
        (run / name).unlink()
        if way != "gone":
            (run / name).write_bytes(after)
        if after == before and way != "gone":
            continue
        for command, (status, shown) in results(run, small_run.parent, capsys).items():
            if (status, shown) != whole[command]:
                told = f"{name}, {way}, {command}: {shown[:2000]}"
                assert status not in (0, None), f"another result in silence: {told}"
                assert Path(name).name in shown, told
                assert re.search("damaged|run folder|cannot be read", shown), told
                seen += 1
        shutil.rmtree(run)
    assert seen


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("rounds/0001/verdicts.jsonl", "cut"),
        ("rounds/0002/verdicts.jsonl", "turned"),
        ("best/scores.jsonl", "flipped"),
        ("best/model.safetensors", "flipped"),
        ("rounds/0001/metrics.json", "flipped"),
        ("checksums.json", "empty"),
    ],
)
def test_damage_is_seen_by_the_commands_that_read_it(name, way, small_run, tmp_path, capsys):
    run = copied(small_run, tmp_path)
    file = run / name.replace("best", str((run / "best").readlink()))
    file.write_bytes(damaged(file.read_bytes(), way, random.Random(1)))
    commands = [("run", small_run.parent / "small.toml", "--out", run), ("report", run)]
    if "model" in name:
        commands = [("predict", run, small_run.parent / "data" / "manifest.jsonl", "--out", tmp_path / "out")]
    for words in commands:
        status, shown = outcome(capsys, *words)
        assert (status, f"{file.name} is damaged" in shown) == (2, True), shown


def test_a_round_that_is_gone_before_others_is_told(small_run, tmp_path, capsys):
    run = copied(small_run, tmp_path)
    (run / "rounds/0001/metrics.json").unlink()
    for words in (
        ("report", run),
        ("compare", run, small_run),
        ("run", small_run.parent / "small.toml", "--out", run),
    ):
        status, shown = outcome(capsys, *words)
        assert (status, "metrics.json is gone, and there are later rounds" in shown) == (2, True), shown


# ---- the notes ----------------------------------------------------------------------------------------


def test_a_kill_between_the_note_and_the_file_leaves_a_sound_folder(tmp_path):
    file = tmp_path / "grown.jsonl"
    checksums.write_jsonl(file, [{"id": "a"}])
    for mark in "012":
        checksums.note(tmp_path, {"grown.jsonl": mark * 64})  # and killed
        checksums.check(file)
    checksums.write_jsonl(file, [{"id": "b"}])
    checksums.check(file)
    file.write_text('{"id": "a"}\n')
    with pytest.raises(
        RunStateError, match=r"grown\.jsonl is damaged.*give the command that wrote it once more"
    ):
        checksums.check(file)


def test_what_a_folder_does_not_note_is_let_pass(tmp_path):
    (tmp_path / "task.toml").write_text("x")
    checksums.check(tmp_path / "task.toml")
    checksums.write_text(tmp_path / "other", "x")
    checksums.check(tmp_path / "task.toml")


def test_a_round_that_is_done_again_is_noted_anew(tmp_path):
    folder = RunFolder(tmp_path)
    (folder.open_round(0) / "human.jsonl").write_text("{}\n")
    folder.close_round(0, {"round": 0, "kept": True})
    (folder.open_round(0) / "scores.jsonl").write_text("{}\n")
    folder.close_round(0, {"round": 0, "kept": False})
    noted = json.loads((tmp_path / checksums.FILE).read_text())
    assert sorted(noted) == ["rounds/0000/metrics.json", "rounds/0000/scores.jsonl"]
    assert folder.round_records() == [{"round": 0, "kept": False}]
    assert folder.human_labels(0) == []
    (folder.round_path(0) / "scores.jsonl").unlink()
    with pytest.raises(RunStateError, match=r"scores\.jsonl is damaged.*remove .*0000 and the rounds after"):
        checksums.check(folder.round_path(0) / "scores.jsonl")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"a": 1}'])
def test_damaged_notes_are_told_too(tmp_path, content):
    checksums.write_text(tmp_path / "recipe.toml", "a = 1\n")
    (tmp_path / checksums.FILE).write_bytes(content)
    with pytest.raises(RunStateError, match=r"checksums\.json is damaged.*take it from a copy"):
        checksums.check(tmp_path / "recipe.toml")


def test_what_is_no_file_is_damage_too(small_run, tmp_path, capsys):
    run = copied(small_run, tmp_path)
    told, last = 0, {name.rpartition("/")[2]: name for name in files_of(small_run)}  # one of each kind
    for name in (*last.values(), ".lock"):
        content = (run / name).read_bytes()
        (run / name).unlink()
        os.mkfifo(run / name)
        for command in ("show", "status"):
            status, said = outcome(capsys, command, run)
            assert status in (0, 2), said
            assert status == 0 or name.rpartition("/")[2] in said, said
            told += status == 2
        (run / name).unlink()
        (run / name).write_bytes(content)
    assert told


@pytest.mark.parametrize(
    "name", ["recipe.toml", "checksums.json", "environment.json", "rounds/0000/metrics.json"]
)
def test_what_is_nested_too_deeply_is_damage_too(name, small_run, tmp_path, capsys):
    run = copied(small_run, tmp_path)
    (run / "checksums.json").unlink()
    (run / name).write_text(("a = " if name.endswith("toml") else "") + "[" * 100_000)
    status, said = outcome(capsys, "status", run)
    assert status == 2, said
    assert name in said
    assert len(said) < 1000

"""Files that the commands write: what is there already, and what is no file at all."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from selftrain.cli import main
from selftrain.cli.commands import ENTRIES, load

READ = {"--source", "--task", "--recipe", "--prompts"}  # options that name a file, to read it


def options_to_write():
    """Every option that names a FILE, but for those that are read: the command's words and the option's."""
    for entry in ENTRIES:
        command = load(entry)
        of = [([entry.name, name], command.commands[name]) for name in entry.commands]
        for words, one in of or [([entry.name], command)]:
            for param in one.params:
                if param.metavar == "FILE" and param.opts[0].startswith("--") and param.opts[0] not in READ:
                    yield words, param.opts[0]


WRITTEN = list(options_to_write())


def fifo(path):
    os.mkfifo(path)


def bound(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def device(path):
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # a second one like /dev/null
    except PermissionError:
        pytest.skip("only root makes devices")


def test_the_options_that_are_tried_are_all_there():
    assert len(WRITTEN) >= 14
    assert (["predict"], "--out") in WRITTEN


@pytest.mark.parametrize(
    ("make", "called"), [(fifo, "a FIFO"), (bound, "a socket"), (device, "a device"), (os.mkdir, "a folder")]
)
@pytest.mark.parametrize(("words", "option"), WRITTEN, ids="".join)
def test_a_target_that_is_no_file_is_refused_before_anything(  # noqa: PLR0917 -- pytest gives them by name
    words, option, make, called, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    target = tmp_path / "target.jsonl"
    make(target.name if make is bound else target)
    (tmp_path / "link.jsonl").symlink_to(target)
    before = target.lstat()
    for named in (target, tmp_path / "link.jsonl"):
        assert main([*words, option, str(named)]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"error: {target} is {called}; expected a file to write"), told
    assert (target.lstat().st_mode, target.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link.jsonl", "target.jsonl"]


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_points_to_is_written_and_the_link_stays(there, small_run, tmp_path, capsys):
    target, link = tmp_path / "real" / "page.html", tmp_path / "link.html"
    target.parent.mkdir()
    if there:
        target.write_text("as it was")
    link.symlink_to("real/page.html")
    second = tmp_path / "second.html"
    second.symlink_to(link)
    assert main(["report", str(small_run), "--out", str(second)]) == 0
    assert link.is_symlink()
    assert second.is_symlink()
    assert "</html>" in target.read_text()
    assert capsys.readouterr().out == f"{target}\n"


def test_predictions_go_where_a_link_points(small_run, tmp_path):
    target, link = tmp_path / "real" / "labels.jsonl", tmp_path / "link.jsonl"
    target.parent.mkdir()
    link.symlink_to(target)
    posts = tmp_path / "posts.jsonl"
    posts.write_text('{"id": "a", "text": "two tickets for tonight"}\n')
    assert main(["predict", str(small_run), str(posts), "--out", str(link)]) == 0
    assert link.is_symlink()
    assert '"id": "a"' in target.read_text()
    assert [one.name for one in target.parent.iterdir() if not one.name.startswith(".")] == ["labels.jsonl"]


def test_links_in_a_circle_are_told(tmp_path, capsys):
    circle = tmp_path / "task.toml"
    circle.symlink_to(circle)
    assert main(["data", "tasks", "hateful-memes", "--out", str(circle)]) == 2
    assert f"cannot write {circle}: Too many levels of symbolic links" in capsys.readouterr().err


def test_a_place_where_no_file_can_be_is_not_taken_for_a_busy_one(small_run, tmp_path, capsys):
    posts = tmp_path / "posts.jsonl"
    posts.write_text('{"id": "a", "text": "two tickets for tonight"}\n')
    assert main(["predict", str(small_run), str(posts), "--out", "/proc/labels.jsonl"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: cannot write /proc/.labels.jsonl.part.lock: No such file or directory.")
    assert "another process" not in told


def test_a_fifo_where_failures_are_listed_is_refused(small_run, tmp_path, capsys):
    posts, sink = tmp_path / "posts.jsonl", tmp_path / "found.jsonl"
    posts.write_text('{"id": "a", "text": "two tickets for tonight"}\n')
    os.mkfifo(tmp_path / "found.jsonl.quarantine.jsonl")
    words = ["filter", str(small_run), "--source", str(posts), "--sink", str(sink), "--recall", "0.5"]
    assert main(words) == 2
    assert f"{sink}.quarantine.jsonl is a FIFO; expected a file" in capsys.readouterr().err
    assert not sink.exists()

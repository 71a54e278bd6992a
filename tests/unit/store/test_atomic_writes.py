"""Files that are there whole or not at all, whoever writes them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from selftrain.errors import StorageError
from selftrain.store import atomic


@contextmanager
def files_of_at_most(size):
    """What a full disk does to a file that grows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "Python": lambda file: file.write_bytes(bytes(10_000)),
    "safetensors": lambda file: save_file({"weights": torch.zeros(10_000)}, file),
    "tokenizers": lambda file: Tokenizer(
        WordLevel({f"word {n}": n for n in range(10_000)}, unk_token="word 0")
    ).save(str(file)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_in_one_way_and_leaves_the_old_file(writer, tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"as it was")
    with files_of_at_most(1000), pytest.raises(StorageError) as told, atomic.replacing(file, 10_000) as part:
        WRITERS[writer](part)
    assert str(told.value).startswith(
        f"the disk is full: {file} (10,000 bytes) could not be written. Free some space"
    )
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("weights", b"as it was")]


def test_a_place_that_refuses_is_named(tmp_path):
    with pytest.raises(StorageError, match="No such file or directory"), atomic.writing(tmp_path / "weights"):
        save_file({"weights": torch.zeros(2)}, tmp_path / "absent" / "weights")


def test_what_has_nothing_to_do_with_files_passes():
    with pytest.raises(ZeroDivisionError), atomic.writing("weights"):
        1 / 0  # noqa: B018


WRITING = """
import sys
from pathlib import Path
from selftrain.store import atomic
with atomic.replacing(Path(sys.argv[1])) as part:
    part.write_text("half")
    print("begun", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def begun(tmp_path):
    """A process that has begun to write tmp_path/data, and waits; and its temporary file."""
    command = [sys.executable, "-c", WRITING, str(tmp_path / "data")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "begun\n"
        (part,) = tmp_path.iterdir()
        yield writer, part
        writer.kill()


def test_what_a_killed_process_left_is_gone_after_the_next_write_beside_it(begun, tmp_path):
    writer, part = begun
    writer.kill()
    writer.wait()
    assert part.exists()
    (tmp_path / ".a stranger's.tmp").touch()
    atomic.write_text(tmp_path / "other", "whole")
    assert {one.name for one in tmp_path.iterdir()} == {"other", ".a stranger's.tmp"}


def test_what_somebody_still_writes_is_left_alone(begun, tmp_path):
    writer, part = begun
    atomic.write_text(tmp_path / "other", "whole")
    assert part.exists()
    writer.communicate()
    assert writer.returncode == 0
    assert (tmp_path / "data").read_text() == "half"
    assert not part.exists()


def test_numbers_of_numpy_are_written_as_numbers(tmp_path):
    given = {"n": np.int64(3), "x": np.float32(0.25)}
    atomic.write_json(tmp_path / "one.json", given)
    atomic.write_jsonl(tmp_path / "rows.jsonl", [given])
    assert json.loads((tmp_path / "one.json").read_text()) == {"n": 3, "x": 0.25}
    assert (tmp_path / "rows.jsonl").read_text() == '{"n": 3, "x": 0.25}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "one.json", {"x": np.float32("nan")})
    with pytest.raises(TypeError, match="a set is no value of JSON"):
        atomic.write_json(tmp_path / "one.json", {"x": {1}})

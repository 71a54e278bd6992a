"""What is decided before a server starts: threads, the key."""

from __future__ import annotations

import pytest

from selftrain.cli import main
from selftrain.serving import server
from selftrain.serving.server import compute_threads


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        (("max 100000", "", None), 6),
        (("250000 100000", "", None), 2),
        (("50000 100000", "", None), 1),
        ((None, "", None), 6),
        (("250000 100000", "4", None), 4),
        (("250000 100000", "4", 5), 5),
    ],
)
def test_a_model_gets_the_cores_that_the_process_may_use(monkeypatch, tmp_path, given, threads):
    quota, by_hand, asked = given
    monkeypatch.setattr(server.os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(server, "_CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setenv("OMP_NUM_THREADS", by_hand)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert compute_threads(asked) == threads


def test_an_unset_key_is_refused_before_anything_else(monkeypatch, capsys):
    monkeypatch.setenv("EMPTY", "")
    assert main(["serve", "nothing", "--key-variable", "EMPTY"]) == 2
    assert "EMPTY is not set, or empty" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--max-batch", "--max-queue", "--threads"])
def test_counts_are_at_least_one(option, capsys):
    assert main(["serve", "nothing", option, "0"]) == 2
    assert (
        f"Invalid value for '{option}': Input should be greater than or equal to 1" in capsys.readouterr().err
    )

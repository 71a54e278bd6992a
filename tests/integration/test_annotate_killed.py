"""An annotation that is killed goes on: nothing is asked twice, and what is written is the same."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from annotation_helpers import make_home
from processes import run

pytestmark = pytest.mark.integration

CHILD = Path(__file__).with_name("annotate_child.py")
QUESTIONS = 15


def test_killed_again_and_again_it_asks_everything_once(tmp_path):
    whole, killed = make_home(tmp_path / "whole"), make_home(tmp_path / "killed")
    assert run((CHILD, whole, 0)).returncode == 0
    for count in range(4, QUESTIONS, 4):
        assert run((CHILD, killed, 4)).returncode == -signal.SIGKILL
        assert len((killed / "asked.txt").read_text().splitlines()) == count
        assert not (killed / "annotated.jsonl").exists()
    last = run((CHILD, killed, 0))
    assert last.returncode == 0, last.stderr
    assert "12 answers were in the store already" in last.stdout
    asked = (killed / "asked.txt").read_text().splitlines()
    assert len(asked) == len(set(asked)) == QUESTIONS
    assert (killed / "annotated.jsonl").read_bytes() == (whole / "annotated.jsonl").read_bytes()

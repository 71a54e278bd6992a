"""Models of a hub are those of one commit, and every number of their weights is in their fingerprint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mllm_families import qwen25_vl

CHECKOUT = Path(__file__).parents[3]
COMMITS = ("a" * 40, "b" * 40)
LOADED = """
import json, sys
from backbones.mllm.load import load_mllm
made = [load_mllm("org/tiny", **one) for one in json.loads(sys.argv[1])]
print(json.dumps([(one.revision, one.fingerprint) for one in made]))
"""


@pytest.fixture
def hub(tmp_path):
    """A hub's cache in which the branch `main` has moved from one commit to another."""
    folder = tmp_path / "models--org--tiny"
    family = qwen25_vl()
    for commit in COMMITS:
        family.whole.save_pretrained(folder / "snapshots" / commit)
        family.processor.save_pretrained(folder / "snapshots" / commit)
        with torch.no_grad():
            next(family.whole.parameters()).view(-1)[-1] += 1
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMITS[1])
    return tmp_path


def test_a_branch_becomes_the_commit_that_it_stands_for(hub):
    wanted = [{}, *({"revision": commit} for commit in COMMITS)]
    found = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(wanted)],
        env=os.environ | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(CHECKOUT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    branch, first, second = json.loads(found.stdout)
    assert [first[0], second[0]] == list(COMMITS)
    assert branch == second
    assert first[1] != second[1]


def test_any_one_number_of_the_weights_is_another_base():
    plain = qwen25_vl().base().fingerprint
    assert qwen25_vl().base().fingerprint == plain
    for place in (0, -1):
        for number in range(3):
            changed = qwen25_vl()
            with torch.no_grad():
                list(changed.whole.base_model.parameters())[number].view(-1)[place] += 1e-3
            assert changed.base().fingerprint != plain


def test_another_chat_template_or_tokenizer_is_another_base():
    plain = qwen25_vl().base().fingerprint
    changed = qwen25_vl()
    changed.processor.chat_template += " "
    assert changed.base().fingerprint != plain
    changed = qwen25_vl()
    changed.processor.tokenizer.add_tokens(["NAÏVE"])
    assert changed.base().fingerprint != plain

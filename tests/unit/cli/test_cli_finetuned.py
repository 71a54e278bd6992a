"""A run that trains the backbone through adapters: the recipe's settings, and predictions of its model."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from selftrain.build import build
from selftrain.cli import main
from selftrain.config import load_recipe
from selftrain.models.finetune import FineTuner
from selftrain.models.finetune_network import load_finetuned
from selftrain.models.pretrained import finetuning_backbone

RECIPE = (
    '[data]\nmanifest = "posts.jsonl"\ntask = "task.toml"\nvalidation_share = 0.3\nlabelled = 8\n'
    'duplicates = "off"\n[backbone]\ncache = "cache"\n'
    '[classifier]\nkind = "finetune"\nmode = "lora"\nepochs = 1\nbatch_size = 8\nlora_rank = 4\n'
    "learning_rate = 0.001\n"
    "[selection]\nk = 4\n[rounds]\nmax = 0\n"
)
TASK = 'name = "food"\npositive = "fruit"\npolicy = "p"\n[classes]\nfruit = "grows"\ntool = "is made"\n'
FRUITS, TOOLS = ("apple", "pear", "plum", "fig", "lime"), ("hammer", "saw", "drill", "file", "plane")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Forty posts of words alone: the smaller tower does, and quickly."""
    home = tmp_path_factory.mktemp("finetuned")
    rows = [
        {"id": f"{word}-{n}", "text": f"{word} number {n}", "label": "fruit" if word in FRUITS else "tool"}
        for n in range(4)
        for word in (*FRUITS, *TOOLS)
    ]
    (home / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "task.toml").write_text(TASK)
    (home / "lora.toml").write_text(RECIPE)
    return home / "lora.toml"


def test_the_recipe_sets_the_trainer(recipe):
    trainer = build(load_recipe(recipe)).classifier
    assert isinstance(trainer, FineTuner)
    assert (trainer.architecture.mode, trainer.architecture.lora_rank) == ("lora", 4)
    assert (trainer.epochs, trainer.batch_size, trainer.learning_rate) == (1, 8, 0.001)
    # what the recipe leaves open is the trainer's own default, not the head's
    changed = load_recipe(recipe, ["classifier.mode=full", "classifier.epochs=3"])
    left_open = build(changed).classifier
    assert (left_open.epochs, left_open.weight_decay) == (
        3,
        FineTuner(lambda: None).weight_decay,
    )


def test_a_finetuned_run_predicts_with_its_own_backbone(recipe, capsys):
    home = recipe.parent
    assert main(["run", str(recipe), "--out", str(home / "run")]) == 0
    capsys.readouterr()
    assert main(["predict", str(home / "run"), str(home / "posts.jsonl"), "--out", "-"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["id"] for one in told][:2] == ["apple-0", "pear-0"]
    # the same weights in a network of ours
    model, _ = load_finetuned(home / "run" / "best" / "model.safetensors")
    loaded = load_recipe(recipe)
    trainer = replace(build(loaded).classifier, make_backbone=partial(finetuning_backbone, loaded))
    network = trainer._ready(model)
    from selftrain.data.manifest import read_manifest

    posts = read_manifest(home / "posts.jsonl").posts
    logits = model.calibration(network.classify(network.encode(posts, 8, 0).rows))
    odds = [one["probabilities"]["fruit"] for one in told]
    np.testing.assert_allclose(odds, 1 / (1 + np.exp(-logits[:, 1].astype(np.float64))), atol=1e-4)
    assert (home / "run" / "best" / "model.safetensors").stat().st_size < 5_000_000  # adapters alone

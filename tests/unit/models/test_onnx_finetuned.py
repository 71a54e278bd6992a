"""Fine-tuned classifiers out of an ONNX file: every weight trained, and adapters merged."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from report_helpers import by_hand

from selftrain.cli import main
from selftrain.config import stored_recipe
from selftrain.data.manifest import read_manifest
from selftrain.models.calibration import Calibration
from selftrain.models.finetune_network import FinetunedClassifier, Network, NetworkShape
from selftrain.models.pretrained import finetuning_backbone
from selftrain.models.run_predictor import RunPredictor
from selftrain.serving.load_predictor import load_predictor
from selftrain.store.run_dir import RunFolder


@pytest.fixture(params=["lora", "full"])
def tuned(request, small_run, tmp_path):
    """A copy of the run whose best model is a fine-tuned one: its weights are moved at random."""
    folder = by_hand(RunFolder(shutil.copytree(small_run, tmp_path / "run", symlinks=True)))
    untouched = RunPredictor.load(folder.path)
    torch.manual_seed(4)
    network = Network(
        finetuning_backbone(stored_recipe(folder)), NetworkShape(mode=request.param, lora_rank=4)
    )
    weights = network.backbone.state_dict()
    for name, value in weights.items():
        if request.param == "lora" and "lora_B" in name:
            value.normal_(std=0.02)
        elif request.param == "full" and name.endswith("weight") and value.ndim == 2:
            value.mul_(1 + 0.05 * torch.randn_like(value))
    network.architecture = network.architecture._replace(
        head="mlp", hidden=untouched.head.layers[0].out_features
    )
    network.attach(untouched.head)
    model = FinetunedClassifier(
        network.portable(), network.architecture, network.pretrained, Calibration(1.5, (0.0, -0.25))
    )
    model.save(untouched.file, {})
    return folder


def test_a_fine_tuned_classifier_scores_the_same_out_of_its_file(tuned, small_run, tmp_path, capsys):
    posts = read_manifest(small_run.parent / "data" / "manifest.jsonl").posts[:12]
    assert any(post.images for post in posts)
    assert main(["export", str(tuned.path), "--onnx", str(tmp_path / "m.onnx")]) == 0
    expected, found, before = (
        np.array([one.probs["invitation"] for one in predictor.predict(posts)])
        for predictor in map(load_predictor, (tuned.path, tmp_path / "m.onnx", small_run))
    )
    assert np.abs(expected - found).max() < 1e-4
    assert np.abs(expected - before).max() > 0.01, "the moved weights are what is scored with"
    assert main(["export", str(tuned.path), "--onnx", str(tmp_path / "h.onnx"), "--head-only"]) == 2
    assert "was fine-tuned" in capsys.readouterr().err
    assert not (tmp_path / "h.onnx").exists()

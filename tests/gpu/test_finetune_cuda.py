"""One epoch of fine-tuning on a CUDA device in bfloat16."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from class_helpers import column

from losses import AgainstRest, Group, PNULoss
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.data.posts import Post

pytestmark = pytest.mark.gpu

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}


@pytest.fixture(scope="module")
def make_backbone(tmp_path_factory):
    """Device -> a factory of one and the same tiny CLIP on it."""
    from safetensors.torch import save_file

    from backbones import load_backbone
    from backbones.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip-cuda.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "tiny-clip-cuda.json")
    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    state = open_clip.create_model("tiny-clip-cuda").state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, weights)

    def on(device):
        return lambda: load_backbone(
            "clip", model="tiny-clip-cuda", weights=weights, device=device, dtype="fp32"
        )

    return on


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Texts with and without a picture; the last six of 30 are the pool."""
    from PIL import Image

    picture = tmp_path_factory.mktemp("pictures") / "noise.png"
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 3)).astype(np.uint8)
    Image.fromarray(noise).save(picture)
    truth = (np.arange(30) % 2).astype(np.int8)
    posts = tuple(
        Post(f"p{i}", ("bright light", "dark night")[v], (picture,) if i % 3 else ())
        for i, v in enumerate(truth)
    )
    labels = np.where(np.arange(30) < 24, truth, np.int8(-1))
    parts = np.split(np.arange(30), [16, 24])
    return Corpus(posts, None, *parts, np.empty(0, np.int64), labels, truth, ("bright", "dark"))


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_an_epoch_in_bfloat16_trains_and_its_model_scores_on_the_cpu(mode, make_backbone, corpus, tmp_path):
    from selftrain.models.finetune import FineTuner

    options = {"mode": mode, "learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "progress": False}
    trainer = FineTuner(make_backbone("cuda"), **options)
    groups = np.append(1 - corpus.labels[corpus.labelled], [Group.DIVERGENT] * 4).astype(np.int64)
    positions = np.concatenate([corpus.labelled, corpus.pool[:4]])
    training = TrainingSet(positions, column(groups), np.full((20, 1), 0.5, np.float32))
    state = torch.cuda.get_rng_state()
    model = trainer.fit(
        corpus, training, loss=AgainstRest((PNULoss(balance=0.1),)), seed=0, where="round 1", start=None
    )
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert np.isfinite(model.curve[0].parts["loss"])
    assert {
        (value.device.type, value.is_floating_point() and value.dtype) for value in model.weights.values()
    } <= {
        ("cpu", torch.float32),
        ("cpu", False),
    }
    pretrained = make_backbone("cpu")().module.state_dict()
    if mode == "full":
        assert not torch.equal(
            model.weights["backbone.model.text_projection"], pretrained["model.text_projection"]
        )
    else:
        assert any(value.any() for name, value in model.weights.items() if "lora_B" in name)
    model.save(tmp_path / "model.safetensors", {})
    on_cpu = FineTuner(make_backbone("cpu"), **options)
    everyone = np.arange(len(corpus.posts))
    scores = [
        np.concatenate([logits for _, logits in one.logits(loaded, corpus, everyone)])
        for one, loaded in ((trainer, model), (on_cpu, on_cpu.load(tmp_path / "model.safetensors")))
    ]
    assert np.ptp(scores[1]) > 1e-3
    # bfloat16 keeps 8 bits; the same model in float32 must not be another one
    np.testing.assert_allclose(scores[0], scores[1], atol=0.1 * np.ptp(scores[1]))


def test_running_out_of_device_memory_says_what_to_lower(make_backbone, corpus, monkeypatch):
    from selftrain.errors import TrainingError
    from selftrain.models.finetune import FineTuner

    trainer = FineTuner(make_backbone("cuda"), progress=False)
    training = TrainingSet(
        corpus.labelled,
        column(1 - corpus.labels[corpus.labelled]).astype(np.int64),
        np.full((16, 1), 0.5, np.float32),
    )
    backbone = type(make_backbone("cpu")())

    def demand(*_args, **_named):
        return torch.empty(2**50, dtype=torch.uint8, device="cuda")

    monkeypatch.setattr(backbone, "collate", demand)
    loss = AgainstRest((PNULoss(form="pn"),))
    with pytest.raises(TrainingError, match=r"out of memory.*Lower classifier.batch_size \(now 16\)"):
        trainer.fit(corpus, training, loss=loss, seed=0, where="round 1", start=None)

"""Fine-tuning a tiny open_clip model on texts and images, and its files in a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from class_helpers import column

from selftrain.data.corpus import Corpus
from selftrain.data.posts import Post

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).parents[3]
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CHILD = """
import sys
from pathlib import Path
import numpy as np
from test_finetune_clip import clip_trainer, pictured_corpus
from selftrain.models.model_file import read_format
folder, mode = Path(sys.argv[1]), sys.argv[2]
file = folder / f"{mode}.safetensors"
assert read_format(file) == f"selftrain-{mode}-2"
trainer, corpus = clip_trainer(folder, mode), pictured_corpus(folder)
model = trainer.load(file)
parts = [logits for _, logits in trainer.logits(model, corpus, np.arange(len(corpus.posts)))]
np.save(folder / f"{mode}.npy", np.concatenate(parts))
"""


def clip_trainer(folder, mode, **changes):
    from backbones import load_backbone
    from backbones.torchvision_compat import ensure_torchvision
    from selftrain.models.finetune import FineTuner

    ensure_torchvision()
    import open_clip

    open_clip.add_model_config(folder / "tiny-clip.json")

    def make():
        weights = folder / "weights.safetensors"
        return load_backbone("clip", model="tiny-clip", weights=weights, device="cpu", dtype="fp32")

    options = {
        "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "probe": False, "progress": False,
        "head": "linear",
    }  # fmt: skip
    return FineTuner(make, mode=mode, **(options | changes))


def pictured_corpus(folder):
    """Texts, images, and both, of two classes that a look tells apart; the pool is the last quarter."""
    posts, labels = [], []
    for number in range(24):
        value = number % 2
        text = ("bright light", "dark night")[value] if number % 3 else ""
        images = (folder / f"{value}{number // 2 % 2}.png",) if number % 3 != 1 else ()
        posts.append(Post(f"p{number}", text, images))
        labels.append(value)
    truth = np.array(labels, np.int8)
    shown = np.where(np.arange(24) < 18, truth, np.int8(-1))
    parts = np.split(np.arange(24), [12, 18])
    return Corpus(tuple(posts), None, *parts, np.empty(0, np.int64), shown, truth, ("bright", "dark"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The configuration of a tiny CLIP, its random weights, and four pictures."""
    from PIL import Image
    from safetensors.torch import save_file

    from backbones.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "tiny-clip.json")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = open_clip.create_model("tiny-clip").state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "weights.safetensors")
    for value in range(2):
        for number in range(2):
            noise = np.random.default_rng(number).integers(0, 128, (40, 48, 3)).astype(np.uint8)
            Image.fromarray(noise + np.uint8(127 * (1 - value))).save(folder / f"{value}{number}.png")
    return folder


def fit(trainer, corpus, **options):
    from losses import AgainstRest, PNULoss
    from selftrain.data.corpus import TrainingSet

    groups = np.concatenate([1 - corpus.labels[corpus.labelled], np.full(3, 4)]).astype(np.int64)
    training = TrainingSet(
        np.concatenate([corpus.labelled, corpus.pool[:3]]), column(groups), np.full((15, 1), 0.5, np.float32)
    )
    loss = AgainstRest((PNULoss(form="weighted", lambda_u=0.1),))
    return trainer.fit(corpus, training, loss=loss, seed=0, where="round 1", start=None, **options)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_fresh_process_gives_identical_logits(mode, folder):
    trainer, corpus = clip_trainer(folder, mode), pictured_corpus(folder)
    model = fit(trainer, corpus)
    file = folder / f"{mode}.safetensors"
    model.save(file, {"round": 1})
    parts = [logits for _, logits in trainer.logits(model, corpus, np.arange(24))]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), mode],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent), str(CHECKOUT / "tests"), str(CHECKOUT)]
            ),
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(folder / f"{mode}.npy")
    np.testing.assert_array_equal(found, np.concatenate(parts))
    assert np.ptp(found) > 1e-3
    base = (folder / "weights.safetensors").stat().st_size
    if mode == "full":
        assert file.stat().st_size > base
    else:
        assert file.stat().st_size < base / 50
        assert not [name for name in model.weights if not name.startswith("head.") and "lora_" not in name]


def test_full_training_reaches_both_towers_with_checkpointing_as_without(folder):
    corpus = pictured_corpus(folder)
    plain = fit(clip_trainer(folder, "full", epochs=1), corpus)
    saving = fit(clip_trainer(folder, "full", epochs=1, gradient_checkpointing=True), corpus)
    backbone = clip_trainer(folder, "full").make_backbone()
    moved = {
        name
        for name, value in backbone.module.state_dict().items()
        if not torch.equal(plain.weights[f"backbone.{name}"], value)
    }
    assert {"model.visual.conv1.weight", "model.token_embedding.weight", "model.text_projection"} <= moved
    for name, value in plain.weights.items():
        torch.testing.assert_close(saving.weights[name], value, atol=1e-5, rtol=1e-4, msg=name)

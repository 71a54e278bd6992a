"""open_clip models as backbones, on a tiny configuration."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import backbones
from backbones import load_backbone
from backbones.errors import WeightsError

CHILD = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from backbones.torchvision_compat import ensure_torchvision
ensure_torchvision()
import open_clip
from backbones import load_backbone
folder, image = Path(sys.argv[1]), Path(sys.argv[2])
open_clip.add_model_config(folder / "tiny-clip.json")
backbone = load_backbone("clip", model="tiny-clip", weights=folder / "weights.safetensors", device="cpu")
texts = {"a": "two words", "b": ""}
posts = [SimpleNamespace(id=id, text=text, images=(image,)) for id, text in texts.items()]
np.save(folder / "rows.npy", backbone.encode(posts).rows)
print(backbone.fingerprint())
"""


@pytest.fixture
def backbone(tiny_clip):
    return load_backbone("clip", model="tiny-clip", weights=tiny_clip / "weights.safetensors", device="cpu")


def test_a_fresh_process_gives_identical_rows_and_fingerprint(tiny_clip, backbone, post, picture):
    image = picture("a.png")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tiny_clip), str(image)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == backbone.fingerprint()
    rows = backbone.encode([post("a", "two words", (image,)), post("b", "", (image,))]).rows
    np.testing.assert_array_equal(np.load(tiny_clip / "rows.npy"), rows)


def test_half_a_surrogate_pair_and_a_path_as_text_are_encoded(backbone, post, picture):
    image = picture("a.png")
    odd = post("a", "two \ud800 words", (str(image),))
    plain = post("a", "two ? words", (image,))
    np.testing.assert_array_equal(backbone.encode([odd]).rows, backbone.encode([plain]).rows)
    rows = [backbone.module(backbone.collate([one])).detach() for one in (odd, plain)]
    assert torch.equal(*rows)


def test_loading_leaves_the_random_state_as_it_was(tiny_clip):
    before = torch.random.get_rng_state()
    load_backbone("clip", model="tiny-clip", weights=tiny_clip / "weights.safetensors", device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_python_builds_what_a_recipe_names(tiny_clip, backbone):
    built = backbones.CLIP("tiny-clip", tiny_clip / "weights.safetensors", device="cpu")
    assert built.fingerprint() == backbone.fingerprint()
    assert type(built) is type(backbone)
    assert backbones.__all__ == sorted(backbones.__all__)
    with pytest.raises(AttributeError, match="no_such"):
        _ = backbones.no_such


def test_the_container_of_the_weights_does_not_matter_their_values_do(tiny_clip, backbone, tmp_path):
    trained = load_backbone("clip", model="tiny-clip", weights=tiny_clip / "weights.pt", device="cpu")
    assert trained.fingerprint() == backbone.fingerprint()
    with torch.no_grad():
        trained.module.model.ln_final.bias[0] += 1
    assert trained.fingerprint() != backbone.fingerprint()


def test_rows_follow_the_contract_and_the_module(backbone, post, picture):
    a, b = picture("a.png"), picture("b.png")
    posts = [post("t", "hi"), post("i", "", (a,)), post("album", "word " * 300, (a, b)), post("t2", "hi")]
    rows, failures = backbone.encode(posts, batch_size=1, workers=2)
    assert not failures
    assert backbone.layout == (32, 32)
    assert rows[:, -2:].tolist() == [[1, 0], [0, 1], [1, 1], [1, 0]]
    np.testing.assert_allclose(np.linalg.norm(rows[:, :32], axis=1), rows[:, -2], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows[:, 32:64], axis=1), rows[:, -1], atol=1e-6)
    assert not rows[1, :32].any()
    assert not rows[0, 32:64].any()
    np.testing.assert_allclose(backbone.module(backbone.collate(posts)).detach().numpy(), rows, atol=2e-6)
    assert backbone.module(backbone.collate(posts[:1])).shape == (1, 66)


def test_a_row_does_not_hang_on_the_posts_beside(backbone, post, picture):
    a, b = picture("a.png"), picture("b.png")
    posts = [post(str(n), "word " * n, (a, b)[n % 2 :][: n % 3]) for n in range(11)]
    rows = backbone.encode(posts).rows
    assert len(np.unique(rows, axis=0)) == 11
    for order in (range(11), range(10, -1, -1)):
        alone = [backbone.encode([posts[n]], batch_size=1 + n, workers=n % 2).rows for n in order]
        assert np.concatenate(alone).tobytes() == rows[list(order)].tobytes()


def test_embeddings_are_those_of_open_clip(backbone, post, picture):
    import open_clip
    from PIL import Image

    path = picture("a.png")
    transform = open_clip.image_transform(32, is_train=False)
    with torch.inference_mode():
        text = backbone.module.model.encode_text(open_clip.get_tokenizer("tiny-clip")(["hi"]), normalize=True)
        image = backbone.module.model.encode_image(transform(Image.open(path))[None], normalize=True)
    row = backbone.encode([post("a", "hi", (path,))]).rows[0]
    np.testing.assert_allclose(row[:64], torch.cat([text, image], dim=1)[0], atol=1e-6)


def test_lora_targets_receive_gradient_and_change_the_rows(backbone, post, picture):
    inputs = backbone.collate([post("a", "hi", (picture("a.png"),))])
    before = backbone.module(inputs).detach()
    targets = backbone.lora_targets()
    assert not [name for name in targets if name.endswith("out_proj")]
    import peft  # imports torchvision, so only once a backbone has mended it

    adapted = peft.get_peft_model(backbone.module, peft.LoraConfig(r=2, target_modules=targets))
    backbone.set_gradient_checkpointing(True)
    adapted.train()
    rows = adapted(inputs)
    torch.manual_seed(0)
    (rows * torch.randn_like(rows)).sum().backward()
    trainable = {name: p for name, p in adapted.named_parameters() if "lora_B" in name}
    assert len(trainable) == 8  # two feed-forward layers, two blocks, two towers
    assert [name for name, p in trainable.items() if p.grad is None or not p.grad.any()] == []
    torch.optim.SGD(trainable.values(), lr=0.1).step()
    assert (adapted(inputs) - before).abs().max() > 1e-4


def test_a_tag_brings_its_own_activation(monkeypatch):
    """OpenAI's weights were trained with QuickGELU, which the name ViT-L-14 does not say."""
    from backbones import clip

    asked = {}
    monkeypatch.setattr(clip.open_clip, "create_model", lambda name, **options: asked.update(options))
    clip.load_model("ViT-L-14", "openai", None)
    assert asked["force_quick_gelu"] is True
    clip.load_model("ViT-L-14", "laion2b_s32b_b82k", None)
    assert asked["force_quick_gelu"] is False
    assert asked["force_preprocess_cfg"]["mean"] == (0.5, 0.5, 0.5)


def test_wrong_choices_say_what_would_be_right(tiny_clip, tmp_path):
    pickle = tmp_path / "weights.pkl"
    pickle.write_bytes(b"x")
    unsafe = tmp_path / "unsafe.pt"
    torch.save({"state_dict": copy.deepcopy, "path": Path}, unsafe)
    weights = tiny_clip / "weights.safetensors"
    for options, message in [
        ({"model": "no-such"}, "no model 'no-such'"),
        ({"model": "ViT-B-32", "weights": "no_tag"}, r"neither a file nor a tag of ViT-B-32 \(openai"),
        ({"model": "tiny-clip", "weights": pickle}, "must end in .safetensors"),
        ({"model": "tiny-clip", "weights": unsafe}, "holds only tensors"),
        ({"model": "ViT-B-32", "weights": weights}, "exactly this architecture"),
        ({"model": "ViT-B-32", "weights": weights, "like": "no_tag"}, "like='no_tag' is no tag"),
    ]:
        with pytest.raises(WeightsError, match=message):
            load_backbone("clip", device="cpu", **options)


def test_naming_a_model_loads_nothing(monkeypatch):
    from backbones import CLIP, clip

    loads = []
    monkeypatch.setattr(clip, "load_model", lambda *asked: loads.append(asked))
    backbone = CLIP("ViT-L-14", "openai")
    assert (backbone.name, backbone.weights, loads) == ("clip:ViT-L-14", "openai", [])
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = backbone.colour
    with pytest.raises(WeightsError, match="no model 'no-such'"):
        CLIP("no-such")


def test_weights_that_are_not_here_and_cannot_be_fetched(tmp_path):
    code = (
        "from backbones import load_backbone\nfrom backbones.errors import WeightsError\n"
        "try: load_backbone('clip', device='cpu')\nexcept WeightsError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        check=False,
    )
    assert "could not be fetched. Run once with a network" in done.stdout, done.stderr
    assert "like='openai'" in done.stdout


def test_half_precision_is_close_and_has_a_fingerprint_of_its_own(tiny_clip, backbone, post, picture):
    options = {"model": "tiny-clip", "weights": tiny_clip / "weights.safetensors", "device": "cpu"}
    half = load_backbone("clip", dtype="bf16", **options)
    posts = [post("a", "two words", (picture("a.png"),))]
    difference = np.abs(half.encode(posts).rows - backbone.encode(posts).rows).max()
    assert 0 < difference < 0.02
    assert half.fingerprint() != backbone.fingerprint()

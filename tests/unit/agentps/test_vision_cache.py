"""Features of pictures, kept: every family gives and takes them, and training and scores stay the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from agentps_helpers import TASK, tiny_embedded, training_folder
from annotation_helpers import film
from mllm_families import FAMILIES, picture

from backbones.mllm.smollm2_efficientnet import IMAGE_TOKENS
from selftrain.agentps import model as building
from selftrain.agentps.checkpoint import WEIGHTS
from selftrain.agentps.dataset import Example, question_set
from selftrain.agentps.evaluate import score
from selftrain.agentps.frames import Frames
from selftrain.agentps.model import assemble
from selftrain.agentps.recipe import ModelSettings
from selftrain.agentps.train import train_agentps
from selftrain.agentps.vision_cache import VisionCache
from selftrain.errors import MediaError, RecipeError

NO_VIDEO = {"Gemma-3", "Mistral-3", "LLaVA-NeXT", "LFM2-VL"}
CASES = [("smollm2_efficientnet", "images")]
CASES += [(name, "images") for name in FAMILIES]
CASES += [(name, "video") for name in FAMILIES if name not in NO_VIDEO]
FRAMES = Frames(2, 60, 90, repeat=False)


def built_with_pictures(name, album, frames=FRAMES):
    base = tiny_embedded() if name == "smollm2_efficientnet" else FAMILIES[name]().base(album=album)
    made = ModelSettings(rank=4, alpha=8, hidden=16, max_tokens=128, frames=frames, album=album)
    return assemble(made, question_set(TASK, made.variant), base)


def cached(built, folder, album="images", limit=1e9):
    cache = VisionCache(folder, built.base, built.collator.frames, album=album, precision="no", limit=limit)
    built.use_cache(cache)
    return cache


@pytest.fixture
def posts(tmp_path):
    """One picture, none, two and the same two in another order."""
    for color in ("red", "blue"):
        picture(color).save(tmp_path / f"{color}.png")
    red, blue = tmp_path / "red.png", tmp_path / "blue.png"
    albums = [(red,), (), (red, blue), (blue, red), (blue,)]
    return [Example(str(i), f"post {i}", album, ()) for i, album in enumerate(albums)]


def answers(built, posts, **kinds):
    return np.array([one.answers[-1] for one in score(built.model, built.collator, posts, **kinds)])


def no_pixels(pictures, _frames):
    assert not pictures, "a picture was decoded"
    return []


@pytest.mark.parametrize(("name", "album"), CASES)
def test_a_known_picture_is_neither_decoded_nor_computed_and_the_answers_stay(
    name, album, posts, tmp_path, monkeypatch
):
    built = built_with_pictures(name, album, FRAMES if album == "images" else Frames(4, 60, 90))
    before = answers(built, posts)
    cached(built, tmp_path / "cache", album)
    # batches of two: alone and album in one, and words alone beside
    np.testing.assert_allclose(answers(built, posts, batch_size=2), before, atol=1e-5)
    monkeypatch.setattr(building, "load_frames", no_pixels)
    again = built_with_pictures(name, album, built.collator.frames)  # a fresh process reads what is there
    cached(again, tmp_path / "cache", album)
    seen = []
    again.model.language.register_forward_pre_hook(
        lambda _module, _args, kinds: seen.extend(kinds), with_kwargs=True
    )
    for size in (2, 5):
        np.testing.assert_allclose(answers(again, posts, batch_size=size), before, atol=1e-5)
    assert not [one for one in seen if one.startswith("pixel_")]


def test_another_base_or_size_is_another_cache_and_other_bytes_another_picture(posts, tmp_path):
    built = built_with_pictures("smollm2_efficientnet", "images")
    cache = cached(built, tmp_path / "cache")
    answers(built, posts)
    assert cache.knows(cache.keys(posts[2].pictures))
    other = built_with_pictures("smollm2_efficientnet", "images", Frames(2, 60, 91, repeat=False))
    assert not cached(other, tmp_path / "cache").knows(cache.keys(posts[2].pictures))
    picture("green").save(posts[0].pictures[0])
    assert not cache.knows(cache.keys(posts[0].pictures))


def test_beyond_its_limit_nothing_is_kept_and_all_is_computed(posts, tmp_path, caplog):
    built = built_with_pictures("smollm2_efficientnet", "images")
    before = answers(built, posts)
    cache = cached(built, tmp_path / "cache", limit=1000)
    np.testing.assert_allclose(answers(built, posts), before, atol=1e-5)
    np.testing.assert_allclose(answers(built, posts), before, atol=1e-5)
    assert not cache.knows(cache.keys(posts[0].pictures))
    assert len([one for one in caplog.records if "vision_cache_gb" in one.message]) == 1


def test_what_two_processes_keep_at_once_is_kept_once_and_found(posts, tmp_path):
    built = built_with_pictures("smollm2_efficientnet", "images")
    one, other = cached(built, tmp_path), cached(built, tmp_path)
    keys = [bytes([i]) * 32 for i in range(4)]
    rows = [torch.full((1, 4, 6), float(i)) for i in range(4)]
    one.add(keys[:2], rows[:2])
    other.add(keys[1:3], rows[1:3])
    other.add(keys[3:], rows[3:])
    for cache in (other, cached(built, tmp_path)):
        assert [cache.read([key]).unique().tolist() for key in keys[1:]] == [[1.0], [2.0], [3.0]]
    (file,) = tmp_path.glob("*/*/rows.f32")
    assert file.stat().st_size == sum(row.nbytes for row in rows)


def test_the_limit_is_of_pictures_of_every_number_of_tokens_together(posts, tmp_path):
    cache = cached(built_with_pictures("smollm2_efficientnet", "images"), tmp_path, limit=8000)
    for tokens in range(1, 9):
        cache.add([bytes([tokens]) * 32], [torch.zeros(1, tokens, 100)])
    assert 4000 < sum(file.stat().st_size for file in tmp_path.rglob("*.*")) <= 8000


def test_a_picture_that_cannot_be_read_is_left_out_beside_known_ones(posts, tmp_path):
    built = built_with_pictures("smollm2_efficientnet", "images")
    cached(built, tmp_path / "cache")
    answers(built, posts)
    broken = tmp_path / "broken.png"
    broken.write_bytes((tmp_path / "red.png").read_bytes()[:60])
    bad = [Example("bad", "x", (broken,), ()), Example("gone", "x", (tmp_path / "gone.png",), ())]
    read = built.collator.read([posts[0], *bad, posts[2]])
    assert sorted(read.unread) == [1, 2]
    assert "broken.png" in read.unread[1]
    assert "image_features" in read.inputs
    built.model(read.inputs)


def test_a_known_picture_that_can_no_longer_be_decoded_is_left_out_beside_new_ones(
    posts, tmp_path, monkeypatch
):
    built = built_with_pictures("smollm2_efficientnet", "images")
    cached(built, tmp_path / "cache")
    answers(built, posts[:1])
    load = building.load_frames

    def too_large(pictures, frames):
        if pictures == posts[0].pictures:
            raise MediaError("too large by now")
        return load(pictures, frames)

    monkeypatch.setattr(building, "load_frames", too_large)
    read = built.collator.read([posts[0], posts[4]])
    assert read.unread == {0: "too large by now"}
    built.model.keeps_features = True
    built.model(read.inputs)
    built.collator.keep(read, built.model.features)
    assert built.collator.cache.knows(built.collator.cache.keys(posts[4].pictures))


def test_a_videos_frames_are_as_many_where_short_albums_stay_short(tmp_path):
    film(tmp_path / "film.mp4")
    post = Example("v", "moving", (tmp_path / "film.mp4",), ())
    built = built_with_pictures("smollm2_efficientnet", "images", Frames(3, 60, 90, repeat=False))
    (length,) = built.collator.lengths([post])
    words = built.collator.lengths([post._replace(pictures=())])[0]
    assert (length - words) == 3 * IMAGE_TOKENS
    before = answers(built, [post])
    cached(built, tmp_path / "cache")
    for _ in range(2):
        np.testing.assert_allclose(answers(built, [post]), before, atol=1e-5)


def test_a_model_that_takes_no_features_says_so(tmp_path):
    built = built_with_pictures("smollm2_efficientnet", "images")
    built.base.module.forward = lambda input_ids, attention_mask: None
    with pytest.raises(RecipeError, match="takes no features computed before"):
        cached(built, tmp_path)


def test_a_trained_tower_and_a_cache_exclude_each_other(tmp_path):
    overrides = ["model.vision=true", f'training.vision_cache="{tmp_path}"']
    with pytest.raises(RecipeError, match=r"model\.vision = true trains it: leave out one of the two"):
        train_agentps(None, tmp_path, overrides=overrides, bar=False)


def test_a_tower_is_not_trained_on_words_alone(tmp_path):
    with pytest.raises(RecipeError, match=r"frames\.count = 0 shows it no picture: leave out one of the two"):
        train_agentps(None, tmp_path, overrides=["model.vision=true", "frames.count=0"], bar=False)


def test_a_training_with_kept_features_is_the_one_without(tmp_path):
    """Two epochs, the second without a tower: losses and weights are the same but for rounding."""
    place = training_folder(tmp_path, posts=30, frames=2)
    found = []
    for name, more in (("plain", []), ("kept", [f'training.vision_cache="{tmp_path / "cache"}"'])):
        changes = [f'data.task="{place / "task.toml"}"', *more]
        train_agentps(
            place / "posts.jsonl", tmp_path / name, recipe=place / "recipe.toml", overrides=changes, bar=False
        )
        rows = (tmp_path / name / "losses.jsonl").read_text().splitlines()
        found.append([json.loads(row)["loss"] for row in rows])
        assert (tmp_path / name / WEIGHTS).exists()
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    assert list((tmp_path / "cache").glob("*/*/meta.json"))

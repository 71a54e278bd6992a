"""How fast: prediction with questions beside prediction without, training beside transformers' Trainer.

And how much of what training computes is padding.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch

from backbones.mllm.base import Mllm
from selftrain._util.types import IntArray
from selftrain.agentps import checkpoint
from selftrain.agentps.dataset import Example, question_set
from selftrain.agentps.evaluate import score
from selftrain.agentps.frames import Frames
from selftrain.agentps.model import Built, assemble, build
from selftrain.agentps.recipe import ModelSettings, TrainingSettings
from selftrain.agentps.steps import Order, share_of_step, train
from selftrain.agentps.vision_cache import VisionCache
from selftrain.data.importers import hateful_memes as memes
from selftrain.data.importers.base import Record
from selftrain.data.manifest import read_manifest

if TYPE_CHECKING:
    from accelerate import Accelerator

BATCH = 32
PAIRS = 5
PICTURE_EPOCHS = 3


def prediction(data: Path) -> dict[str, float]:
    """Time of agentps over that of vanilla, same posts, same batch, in turns.

    Two kinds of posts: Hateful Memes' words alone, the shortest there are, and HarMeme's pictures with words.
    """
    texts = [r.text for r in memes.read(data / "fhm_text").records if isinstance(r, Record)][: BATCH * 2]
    pictures = read_manifest(data / "harmeme" / "train.jsonl").posts[: BATCH * 2]
    words = [Example(str(i), text, (), ()) for i, text in enumerate(texts)]
    albums = [Example(post.id, post.text, post.images, ()) for post in pictures]
    result: dict[str, float] = {}
    for name, posts, frames in (
        ("words", words, None),
        ("one picture", albums, Frames(1, 224, 224, repeat=False)),
        ("sixteen frames", albums[: BATCH // 4], Frames(16, 224, 224)),
    ):
        built = {
            variant: build(ModelSettings(variant=variant, rank=16, alpha=32, frames=frames), memes.TASK)
            for variant in ("vanilla", "agentps")
        }
        ratios = paired(lambda v, b=built, p=posts: _score(b[v], p), "agentps", "vanilla")  # type: ignore[misc]
        result |= spread(f"time ratio, {name}", ratios)
    return result


def training() -> dict[str, float]:
    """Posts a second of our training over those of transformers' Trainer: same tiny model, data, batches.

    Words alone, one epoch; then a picture with each post, three epochs, of which only the first computes the
    frozen tower's features.
    """
    posts = _drawn_posts(256)
    result = spread("throughput ratio", paired(lambda who: 1 / _train(who, posts), "ours", "trainer"))
    with tempfile.TemporaryDirectory() as folder:
        seen = _with_pictures(posts[: BATCH * 2], Path(folder))
        ratios = paired(lambda who: 1 / _train(who, seen, epochs=PICTURE_EPOCHS), "ours", "trainer")
    return result | spread("throughput ratio, one picture, features kept", ratios)


def padding(data: Path) -> dict[str, float]:
    """Share of the tokens computed in an epoch that pad, as recipes begin and with posts drawn as they come.

    Hateful Memes' words, and HarMeme's words with a picture each. Long albums are computed one by one.
    """
    texts = [r.text for r in memes.read(data / "fhm_text").records if isinstance(r, Record)]
    words = [Example(str(i), text, (), ()) for i, text in enumerate(texts)]
    pictures = read_manifest(data / "harmeme" / "train.jsonl").posts
    seen = [Example(post.id, post.text, post.images, ()) for post in pictures]
    defaults, result = TrainingSettings(), dict[str, float]()
    one_picture = Frames(count=1, repeat=False)
    for name, posts, frames in (("words", words, None), ("one picture", seen, one_picture)):
        asked = question_set(memes.TASK, "agentps")
        collator = assemble(ModelSettings(frames=frames), asked, tiny_mllm()).collator
        order = Order(collator.lengths(posts), defaults.batch_size, seed=0)
        sorted_parts = [part for step in order.epoch(0) for part in share_of_step(step, 0, 1, defaults.part)]
        shuffled = np.random.default_rng(0).permutation(len(posts))
        for how, parts in (
            ("", sorted_parts),
            (", as they come", np.array_split(shuffled, len(sorted_parts))),
        ):
            result[f"padding, {name}{how}"] = _padding(order.lengths, parts)
    return result


def _padding(lengths: IntArray, parts: Sequence[IntArray]) -> float:
    """Return the share of padding where each part is as long as its longest post."""
    computed = sum(len(part) * int(lengths[part].max()) for part in parts)
    return 1 - int(lengths.sum()) / computed


def spread(name: str, ratios: list[float]) -> dict[str, float]:
    """The mean of ratios, and their standard deviation."""
    return {name: fmean(ratios), f"{name}, sd": stdev(ratios)}


def paired(run: Callable[[str], float], one: str, other: str) -> list[float]:
    """Seconds (or what `run` gives) of `one` over `other`, pair by pair, first one first, then the other."""
    run(one), run(other)  # both are warm
    ratios = []
    for pair in range(PAIRS):
        order = (one, other) if pair % 2 == 0 else (other, one)
        took = {name: run(name) for name in order}
        ratios.append(took[one] / took[other])
    return ratios


def _score(built: Built, posts: list[Example]) -> float:
    begun = time.perf_counter()
    for _ in score(built.model, built.collator, posts, batch_size=BATCH):
        pass
    return time.perf_counter() - begun


def _train(who: str, posts: list[Example], epochs: int = 1) -> float:
    """Seconds of a training, loading aside; of posts with pictures ours keeps the features."""
    frames = Frames(1, 224, 224, repeat=False) if posts[0].pictures else None
    made = ModelSettings(rank=8, alpha=16, frames=frames)
    built = assemble(made, question_set(memes.TASK, "agentps"), tiny_mllm())
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if who == "ours" and frames is not None:
            place = Path(folder) / "features"
            kinds: Any = {"album": "images", "precision": "no", "limit": 1e9}
            built.use_cache(VisionCache(place, built.base, frames, **kinds))
        (_ours if who == "ours" else _trainer)(built, posts, Path(folder), epochs)
    return time.perf_counter() - begun


def plain_training(
    built: Built,
    posts: Sequence[Example],
    folder: Path,
    accelerator: Accelerator,
    settings: TrainingSettings,
    *,
    epochs: int = 1,
) -> None:
    """Our training and nothing beside it: neither saves nor a validation; the Trainer has none either."""
    once = settings.model_copy(update={"epochs": epochs, "save_every": 10**6, "metric": "auc"})
    with patch.object(checkpoint, "save_training"), patch.object(checkpoint, "save_weights"):
        train(
            built, posts, settings=once, seed=0, folder=folder, identity="bench",
            validate=lambda _: {"auc": 0.0}, accelerator=accelerator, bar=False,
        )  # fmt: skip


def _ours(built: Built, posts: list[Example], folder: Path, epochs: int) -> None:
    from accelerate import Accelerator

    plain_training(built, posts, folder, Accelerator(cpu=True), TrainingSettings(), epochs=epochs)


def _trainer(built: Built, posts: list[Example], folder: Path, epochs: int) -> None:
    """What somebody would write on transformers: the same inputs, the same loss, its own loop."""
    from transformers import Trainer, TrainingArguments

    from losses.process import process_loss
    from selftrain.agentps.model import stack_targets

    class Answers(Trainer):
        def compute_loss(
            self,
            model: Any,  # noqa: ANN401
            inputs: Any,  # noqa: ANN401
            return_outputs: bool = False,
            num_items_in_batch: Any = None,  # noqa: ANN401
        ) -> Any:  # noqa: ANN401
            loss = process_loss(model(inputs["prompts"]), inputs["targets"]).loss
            return (loss, None) if return_outputs else loss

    def collate(batch: list[Example]) -> dict[str, Any]:
        return {"prompts": built.collator.read(batch).inputs, "targets": stack_targets(batch)}

    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=16, num_train_epochs=epochs, learning_rate=1e-4,
        use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    Answers(model=built.model, args=arguments, train_dataset=posts, data_collator=collate).train()


def _with_pictures(posts: list[Example], folder: Path) -> list[Example]:
    """The posts with a photograph-like picture of 640 x 480 each."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for post in posts:
        coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{post.id}.jpg", quality=85)
    return [post._replace(pictures=(folder / f"{post.id}.jpg",)) for post in posts]


def _drawn_posts(count: int) -> list[Example]:
    """Posts of very different lengths, as posts are."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(2.5, 0.8, count), 1, 120).astype(int)
    answer = np.eye(2, dtype=np.float32)
    return [
        Example(str(i), "word " * int(length), (), tuple(answer[generator.integers(2)] for _ in range(4)))
        for i, length in enumerate(lengths)
    ]


def tiny_mllm(tokenizer: Any = None) -> Mllm:  # noqa: ANN401 -- of transformers
    """The shape of smollm2_efficientnet with a random language model of four narrow layers.

    Args:
        tokenizer: SmolLM2's, which is changed; None loads it, which takes seconds.
    """
    from backbones.mllm.smollm2_efficientnet import from_parts
    from backbones.smollm2 import load_tokenizer
    from backbones.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    from transformers import LlamaConfig, LlamaModel

    tokenizer = load_tokenizer() if tokenizer is None else tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        return from_parts("tiny", LlamaModel(config), tokenizer, seed=0)

"""How well a GPU is used: LLaVA-OneVision 0.5B in its real sizes, albums of sixteen pictures, adapters.

The weights are random: how fast a model computes does not depend on them. Pictures are JPEG files that are
read, decoded and scaled within the time that is measured, as in a training.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones.mllm.base import Mllm, to_device
from losses.process import process_loss
from runs.bench.agentps_speed import one_epoch
from selftrain.agentps.dataset import Example, question_set
from selftrain.agentps.evaluate import score
from selftrain.agentps.frames import Frames
from selftrain.agentps.model import Built, assemble, stack_targets
from selftrain.agentps.recipe import ModelSettings, TrainingSettings
from selftrain.data.importers import hateful_memes as memes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from backbones.mllm.hub import Album

ALBUM, SIDE, PATCH = 16, 384, 14
STEP, PART = 16, 2  # sixteen pictures are some 12,000 tokens: two posts fill a card
POSTS = 128
TABLE = 152_000  # rows of the published table, spare ones among them
RATE_SIDE, RATE_RUNS = 8192, 20


def on_gpu(posts: int = POSTS) -> dict[str, float]:
    """Posts a second, peak memory and share of the card's bfloat16 rate, albums as images and as a video.

    The card's rate is that of a product of two square matrices of 8192, measured here.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="bf16")
    rate = matmul_rate()
    result = {"card, bf16 TFLOP/s": rate / 1e12}
    for album in ("images", "video"):
        torch.cuda.reset_peak_memory_stats()
        found = throughput(llava_onevision(album), accelerator, posts=posts, side=SIDE)
        result |= {f"{album}: {name}": value for name, value in found.items()}
        result[f"{album}: peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
        flops = found["training, TFLOP a post"] * 1e12
        result[f"{album}: share of the card's rate"] = found["training, posts a second"] * flops / rate
        torch.cuda.empty_cache()
    return result


def throughput(base: Mllm, accelerator: Accelerator, *, posts: int, side: int) -> dict[str, float]:
    """Posts a second, in training and in scoring, and what a post costs; reading pictures included.

    Args:
        base: The model; changed.
        accelerator: Says where and in which precision.
        posts: How many are trained on and scored, after a step that is not measured.
        side: Of the frames, pixels.
    """
    made = ModelSettings(rank=128, alpha=256, frames=Frames(ALBUM, side, side), hidden=256, variant="agentps")
    built = assemble(made, question_set(memes.TASK, made.variant), base)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        drawn = draw_albums(place, posts, side)
        settings = TrainingSettings(batch_size=STEP, part=PART)
        one_epoch(built, drawn[:STEP], place / "warm", accelerator, settings)
        begun = time.perf_counter()
        one_epoch(built, drawn, place / "timed", accelerator, settings)
        trained = time.perf_counter() - begun
        list(_scored(built, drawn[:STEP], accelerator))
        begun = time.perf_counter()
        done = list(_scored(built, drawn, accelerator))
        scored = time.perf_counter() - begun
        cost = flops_a_post(built, drawn[:PART], accelerator)
    return {
        "training, posts a second": posts / trained,
        "scoring, posts a second": len(done) / scored,
        "training, TFLOP a post": cost / 1e12,
    }


def flops_a_post(built: Built, posts: Sequence[Example], accelerator: Accelerator) -> float:
    """Floating point operations of the products, forward and backward, by torch's counter."""
    built.model.train()
    inputs = to_device(built.collator.read(posts).inputs, accelerator.device)
    wanted = [one.to(accelerator.device) for one in stack_targets(posts)]
    with FlopCounterMode(display=False) as counter:
        with accelerator.autocast():
            logits = built.model(inputs)
        process_loss(logits, wanted).loss.backward()  # type: ignore[no-untyped-call]
    built.model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops()) / len(posts)


def matmul_rate() -> float:
    """Operations a second of the current card, in bfloat16."""
    one = torch.randn(RATE_SIDE, RATE_SIDE, device="cuda", dtype=torch.bfloat16)
    seconds = []
    for _ in range(RATE_RUNS):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begun.record()
        one @ one
        ended.record()
        torch.cuda.synchronize()
        seconds.append(begun.elapsed_time(ended) / 1000)
    return 2 * float(RATE_SIDE**3) / float(median(seconds))


def draw_albums(folder: Path, posts: int, side: int) -> list[Example]:
    """Posts with an album each, of pictures that compress as photographs do; sixteen albums are shared."""
    from PIL import Image

    generator = np.random.default_rng(0)
    answer = np.eye(2, dtype=np.float32)
    albums = []
    for album in range(min(posts, STEP)):
        paths = [folder / f"{album}-{i}.jpg" for i in range(ALBUM)]
        for path in paths:
            coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize((2 * side, side * 3 // 2), Image.Resampling.BICUBIC).save(path, quality=85)
        albums.append(tuple(paths))
    return [
        Example(
            str(i), "when the bus is late again", albums[i % len(albums)],
            tuple(answer[generator.integers(2)] for _ in range(len(memes.TASK.questions) + 1)),
        )
        for i in range(posts)
    ]  # fmt: skip


def llava_onevision(album: Album) -> Mllm:
    """LLaVA-OneVision 0.5B in its published sizes, with random weights, in bfloat16.

    The tokenizer is SmolLM2's, which comes in a package; the table has as many rows as the published one.
    """
    from backbones.mllm.hub import from_parts
    from backbones.smollm2 import load_tokenizer
    from backbones.torchvision_compat import ensure_torchvision
    from runs.bench.small_models import add_image_tokens, llava_processor

    ensure_torchvision()
    from transformers import LlavaOnevisionForConditionalGeneration

    tokenizer: Any = load_tokenizer()
    image, video = add_image_tokens(tokenizer)
    torch.manual_seed(0)
    model: Any = LlavaOnevisionForConditionalGeneration(published_config(image, video))
    model = model.to(torch.bfloat16)
    processor = llava_processor(tokenizer, side=SIDE, image_tokens=(SIDE // PATCH) ** 2)
    return from_parts("llava-onevision 0.5B, random", model, processor, album=album)


def published_config(image_token: int, video_token: int) -> Any:  # noqa: ANN401 -- of transformers
    """Qwen2 0.5B and SigLIP so400m without its last layer, as LLaVA-OneVision 0.5B joins them."""
    from transformers import Qwen2Config, SiglipVisionConfig

    from runs.bench.small_models import llava_config

    text = Qwen2Config(
        vocab_size=TABLE, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    tower = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16,
        image_size=SIDE, patch_size=PATCH, vision_use_head=False,
    )  # fmt: skip
    return llava_config(text, tower, image_token, video_token)


def _scored(built: Built, posts: Sequence[Example], accelerator: Accelerator) -> Any:  # noqa: ANN401
    precise = accelerator.mixed_precision == "no"
    return score(
        built.model, built.collator, posts, batch_size=PART, device=accelerator.device, precise=precise
    )

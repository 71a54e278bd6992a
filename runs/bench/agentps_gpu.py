"""How well a GPU is used: LLaVA-OneVision 0.5B in its real sizes, albums of sixteen pictures, adapters.

The weights are random: how fast a model computes does not depend on them. Pictures are JPEG files that are
read, decoded and scaled within the time that is measured, as in a training.

Each way to go faster is laid on the ones before it, in one run, so that what it brings is seen. Each can be
left out: ``measure(..., variants=...)``.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from tokenizers import AddedToken
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from backbones.mllm.answering import compile_blocks
from backbones.mllm.base import Mllm, to_device
from backbones.mllm.prompts import ANSWER_TOKEN, Inputs, Prompt, Reader, Words
from backbones.prefetch import prefetch, read_ahead, workers_for
from losses.process import process_loss
from runs.bench.agentps_speed import plain_training
from selftrain.agentps import steps
from selftrain.agentps.dataset import Example, question_set
from selftrain.agentps.evaluate import score
from selftrain.agentps.frames import Frames
from selftrain.agentps.model import Built, Collator, assemble, stack_targets
from selftrain.agentps.recipe import ModelSettings, TrainingSettings
from selftrain.agentps.vision_cache import VisionCache
from selftrain.data.importers import hateful_memes as memes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from backbones.mllm.hub import Album

ALBUM, SIDE, PATCH = 16, 384, 14
STEP, PART, WARM = 16, 2, 4
TOKENS = 16_384  # of a part: one album of pictures, five of videos
POSTS = 64
TABLE = 152_000  # rows of the published table, spare ones among them
RATE_SIDE, RATE_RUNS = 8192, 20
SECONDS = 150.0
"""After that nothing further is begun: a lent card is lent for minutes."""


class Variant(NamedTuple):
    """What is switched on.

    Attributes:
        name: As it is printed.
        processes: Prompts and pictures are read by processes; else by four threads, prompts under one lock.
        lean: Adapters and the token's row without peft's copies.
        tokens: Parts by a budget of tokens; else of two posts.
        compiled: Blocks are compiled.
        features: The frozen tower's features come from the store, as from the second epoch on.
        albums: Ways of showing albums that are measured so.
        scored: Scoring is measured too.
    """

    name: str
    processes: bool = True
    lean: bool = True
    tokens: bool = True
    compiled: bool = False
    features: bool = False
    albums: tuple[Album, ...] = ("images", "video")
    scored: bool = False


VARIANTS = (
    Variant("as before", processes=False, lean=False, tokens=False, scored=True),
    Variant("+ processes read", lean=False, tokens=False, albums=("images",)),
    Variant("+ adapters without copies", tokens=False, albums=("images",)),
    Variant("+ parts by tokens", scored=True),
    Variant("+ features kept", features=True, scored=True),
    Variant("+ compiled, features not kept", compiled=True),
    Variant("+ compiled, features kept", compiled=True, features=True),
)


# ---- what is measured -----------------------------------------------------------------------------------


def on_gpu() -> dict[str, float]:
    """Posts a second, peak memory and share of the card's bfloat16 rate, albums as images and as a video.

    The card's rate is that of a product of two square matrices of 8192, measured here. Figures are printed as
    they come; after `SECONDS` no further variant is begun.
    """
    from accelerate import Accelerator

    begun = time.perf_counter()
    accelerator = Accelerator(mixed_precision="bf16")
    rate = matmul_rate()
    result = {"card, bf16 TFLOP/s": rate / 1e12, "cores": float(workers_for("cuda") + 1)}
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {result}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw_albums(Path(folder), POSTS, SIDE)
        result |= reading(llava_reader("images"), drawn, side=SIDE, pin=True)
        for lean in (False, True):
            images = assembled(llava_onevision("images", accelerator.device), SIDE, lean=lean)
            video = images._replace(collator=Collator(llava_reader("video"), Frames(ALBUM, SIDE, SIDE)))
            models = {"images": images, "video": video}
            variants = [one for one in VARIANTS if one.lean == lean]
            print(f"model made after {time.perf_counter() - begun:.0f} s", flush=True)
            left = SECONDS - (time.perf_counter() - begun)
            result |= measure(models, accelerator, drawn, variants, rate=rate, seconds=left)
            del models, images, video
            torch.cuda.empty_cache()
    return result


def measure(
    models: dict[str, Built],
    accelerator: Accelerator,
    posts: Sequence[Example],
    variants: Sequence[Variant],
    *,
    rate: float,
    seconds: float = SECONDS,
    compiler: str = "inductor",
) -> dict[str, float]:
    """Measure variants on models that share their weights, one a way of showing albums.

    Args:
        models: "images" or "video" -> the model; compiled in the end, if a variant says so.
        accelerator: Says where and in which precision.
        posts: With an album each.
        variants: What is switched on, of models that were assembled accordingly.
        rate: Operations a second that the device can do.
        seconds: After that no further variant is begun.
        compiler: Of torch.
    """
    begun, result, compiled = time.perf_counter(), dict[str, float](), False
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: _cache(Path(folder), name, one, accelerator) for name, one in models.items()}
        cells = [(one, album) for one in variants for album in one.albums if album in models]
        # before anything is compiled, for torch counts no operations of what is
        costs = {
            (album, features): _cost(models[album], caches[album] if features else None, accelerator, posts)
            for album, features in sorted({(album, one.features) for one, album in cells})
        }
        for variant, album in cells:
            built, cost = models[album], costs[album, variant.features]
            if time.perf_counter() - begun > seconds:
                print(f"no time left for {variant.name}, {album}", flush=True)
                continue
            if variant.compiled and not compiled:
                compile_blocks(built.base.module, backend=compiler)
                compiled = True
            built.use_cache(caches[album] if variant.features else None)
            try:
                found = _timed(built, accelerator, posts, variant)
            except Exception as error:
                print(f"{variant.name}, {album}: {type(error).__name__}: {str(error)[:500]}", flush=True)
                continue
            found["TFLOP a post"] = cost / 1e12
            found["share of the card's rate"] = found["posts a second"] * cost / rate
            print(f"{variant.name}, {album}: {found}", flush=True)
            result |= {f"{album}: {variant.name}: {key}": value for key, value in found.items()}
    return result


def _timed(
    built: Built, accelerator: Accelerator, posts: Sequence[Example], variant: Variant
) -> dict[str, float]:
    """An epoch, after a small step that is not measured, then all posts scored.

    The epoch's clock begins with the end of its first step, until which processes start.
    """
    settings = TrainingSettings(
        batch_size=STEP, part=STEP if variant.tokens else PART, part_tokens=TOKENS if variant.tokens else None
    )
    found = {"tokens a post": float(np.mean(built.collator.lengths(posts)))}
    cuda = accelerator.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder, _reading(built, processes=variant.processes):
        try:
            plain_training(built, posts[:WARM], Path(folder) / "warm", accelerator, settings)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            with _steps() as steps:
                plain_training(built, posts, Path(folder) / "timed", accelerator, settings)
            (_, first), *others = steps
            found["posts a second"] = sum(count for count, _ in others) / (others[-1][1] - first)
            if cuda:
                found["peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
            if variant.scored:
                begun = time.perf_counter()
                done = list(_scored(built, posts, accelerator, settings))
                found["scored a second"] = len(done) / (time.perf_counter() - begun)
        finally:
            # what accelerate laid around the model would lie there once more for each variant
            accelerator.unwrap_model(built.model, keep_fp32_wrapper=False)
            accelerator.free_memory()
    return found


@contextmanager
def _steps() -> Iterator[list[tuple[int, float]]]:
    """Note the posts of each step and when it ends, which is when its numbers have come from the device."""
    found, whole = list[tuple[int, float]](), steps._Stepper.gradients

    def noted(stepper: Any, batch: Any) -> Any:  # noqa: ANN401 -- as the method
        losses = whole(stepper, batch)
        found.append((len(batch), time.perf_counter()))
        return losses

    with patch.object(steps._Stepper, "gradients", noted):
        yield found


def reading(reader: Reader, posts: Sequence[Example], *, side: int, pin: bool = False) -> dict[str, float]:
    """Posts a second that reading alone can feed: by four threads and a lock, by one process, and by more."""
    collator = Collator(reader, Frames(ALBUM, side, side))
    collator.read(posts[:1])
    result, most = dict[str, float](), max(workers_for("cuda"), 2)
    with _locked(collator):
        read = prefetch(collator.read, _repeated(posts, 32), 4)
        result["reading, four threads and a lock"] = _rate(read, 32, ahead=8)
    for workers in sorted({1, 2, most // 2, most}):
        count = max(6 * workers, 16)
        read = read_ahead(collator.read, _repeated(posts, count), workers, pin=pin)
        result[f"reading, {workers} process{'es' * (workers > 1)}"] = _rate(read, count, ahead=2 * workers)
    print(result, flush=True)
    return result


def on_cpu() -> dict[str, float]:
    """What a machine without a GPU can tell: what reading alone can feed, and the tokens of published frames.

    Those are of sixteen pictures of 360 x 636, as images and as a video.
    """
    result = dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw_albums(Path(folder), POSTS, SIDE)
        result |= reading(llava_reader("images"), drawn, side=SIDE)
        published = Frames(ALBUM, 360, 636)
        for album in ("images", "video"):
            reader = llava_reader(album)
            (length,) = Collator(reader, published).lengths(drawn[:1])
            result[f"{album}: tokens of published frames"] = float(length - reader.length(drawn[0].text, 0))
    return result


def _repeated(posts: Sequence[Example], count: int) -> Iterator[list[Example]]:
    return ([posts[i % len(posts)]] for i in range(count))


def _rate(read: Iterator[Any], count: int, *, ahead: int) -> float:
    """Posts a second of `count`, without the first `ahead`, which are read while processes start."""
    for _ in range(ahead):
        next(read)
    begun = time.perf_counter()
    for _ in read:
        pass
    return (count - ahead) / (time.perf_counter() - begun)


def _cost(
    built: Built, cache: VisionCache | None, accelerator: Accelerator, posts: Sequence[Example]
) -> float:
    built.use_cache(cache)
    built.model.to(accelerator.device)
    if cache is not None:
        for _ in _scored(built, posts[:STEP], accelerator, TrainingSettings(part_tokens=TOKENS)):
            pass
    return flops_a_post(built, posts[:1], accelerator)


def flops_a_post(built: Built, posts: Sequence[Example], accelerator: Accelerator) -> float:
    """Floating point operations of the products, forward and backward, by torch's counter.

    torch counts attention over all pairs of tokens; of a causal one half is never computed, nor counted here.
    """
    built.model.train()
    inputs = to_device(built.collator.read(posts).inputs, accelerator.device)
    wanted = [one.to(accelerator.device) for one in stack_targets(posts)]
    with FlopCounterMode(display=False, custom_mapping=attention_counters()) as counter:
        with accelerator.autocast():
            logits = built.model(inputs)
        process_loss(logits, wanted).loss.backward()  # type: ignore[no-untyped-call]
    built.model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops()) / len(posts)


def attention_counters() -> dict[Any, Any]:
    """Counters of attention, forward and backward, in the place of torch's, which know of no causal ones."""
    return {op: _counter(op) for op in flop_registry if "scaled_dot_product" in str(op)}


def _counter(op: Any) -> Callable[..., int]:  # noqa: ANN401 -- of torch
    names = [one.name for one in op.default._schema.arguments]

    def counted(*args: Any, **kinds: Any) -> int:  # noqa: ANN401
        given = dict(zip(names, args, strict=False)) | kinds
        posts, heads, asking, width = given["query"].shape
        # two products forward; backward one of them again and two for each
        pairs = posts * heads * asking * given["key"].shape[2]
        whole = 2 * width * pairs * (5 if "backward" in str(op) else 2)
        return int(whole // 2 if given.get("is_causal", False) else whole)

    vars(counted)["_get_raw"] = True  # torch's mark: arguments, not their shapes
    return counted


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


# ---- how it was -----------------------------------------------------------------------------------------


class _LockedReader:
    """A reader for threads: a tokenizer pads as it was last told to, whoever told it."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self._lock = reader, threading.Lock()
        self.words: Words = reader.words
        self.length, self.save = reader.length, reader.save

    def read(self, prompts: Sequence[Prompt]) -> Inputs:
        with self._lock:
            return self._reader.read(prompts)


@contextmanager
def _locked(collator: Collator) -> Iterator[None]:
    reader = collator.reader
    collator.reader = _LockedReader(reader)
    try:
        yield
    finally:
        collator.reader = reader


@contextmanager
def _reading(built: Built, *, processes: bool) -> Iterator[None]:
    """Read by processes, or by four threads as before."""
    if processes:
        yield
        return

    def by_threads(function: Any, items: Any, _workers: int, *, pin: bool = False) -> Any:  # noqa: ANN401
        return prefetch(function, items, 4)

    with (
        _locked(built.collator),
        patch.object(steps, "read_ahead", by_threads),
        patch("selftrain.agentps.evaluate.read_ahead", by_threads),
    ):
        yield


# ---- posts and models -----------------------------------------------------------------------------------


def assembled(base: Mllm, side: int, *, lean: bool = True) -> Built:
    """The published settings around a model, which is changed."""
    made = ModelSettings(rank=128, alpha=256, frames=Frames(ALBUM, side, side), hidden=256, variant="agentps")
    return assemble(made, question_set(memes.TASK, made.variant), base, lean=lean)


def _cache(folder: Path, album: str, built: Built, accelerator: Accelerator) -> VisionCache:
    frames = built.collator.frames
    assert frames is not None
    precision = f"{accelerator.mixed_precision} {accelerator.device.type}"
    return VisionCache(folder, built.base, frames, album=album, precision=precision, limit=50e9)


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


def llava_onevision(album: Album, device: torch.device | str = "cpu") -> Mllm:
    """LLaVA-OneVision 0.5B in its published sizes, with random weights drawn on a device, in bfloat16."""
    from backbones.mllm.hub import from_parts
    from backbones.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    from transformers import LlavaOnevisionForConditionalGeneration

    processor, image, video = _processor()
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = LlavaOnevisionForConditionalGeneration(published_config(image, video))
    return from_parts("llava-onevision 0.5B, random", model.to(torch.bfloat16), processor, album=album)


def llava_reader(album: Album) -> Reader:
    """The reader of the same model, which needs none of its weights."""
    from backbones.mllm.hub import HubReader

    processor, *_ = _processor()
    processor.tokenizer.add_tokens(
        [AddedToken(ANSWER_TOKEN, special=True, normalized=False)], special_tokens=True
    )
    made = ModelSettings()
    wording = question_set(memes.TASK, made.variant).wording
    return HubReader(processor, wording, made.padding, made.max_tokens, album)


def _processor() -> tuple[Any, int, int]:
    """LLaVA-OneVision's, with the ids of its pictures' and its videos' token.

    The tokenizer is SmolLM2's, which comes in a package; the table has as many rows as the published one.
    """
    from backbones.torchvision_compat import ensure_torchvision
    from runs.bench.small_models import add_image_tokens, llava_processor

    ensure_torchvision()
    tokenizer = deepcopy(_tokenizer())
    image, video = add_image_tokens(tokenizer)
    return llava_processor(tokenizer, side=SIDE, image_tokens=(SIDE // PATCH) ** 2), image, video


@cache
def _tokenizer() -> Any:  # noqa: ANN401 -- of transformers; out of the package's file it takes seconds
    from backbones.smollm2 import load_tokenizer

    return load_tokenizer()


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


def _scored(
    built: Built, posts: Sequence[Example], accelerator: Accelerator, settings: TrainingSettings
) -> Any:  # noqa: ANN401
    return score(
        built.model, built.collator, posts, batch_size=settings.part, device=accelerator.device,
        precise=accelerator.mixed_precision == "no", tokens=settings.part_tokens,
    )  # fmt: skip

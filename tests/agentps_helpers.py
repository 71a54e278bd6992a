"""Models of the real architectures, random and small, and posts that they can learn."""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from PIL import Image

from backbones.mllm.hub import from_parts
from backbones.smollm2 import load_tokenizer
from backbones.torchvision_compat import ensure_torchvision
from runs.bench.agentps_speed import tiny_mllm
from selftrain.agentps.dataset import question_set
from selftrain.agentps.model import assemble
from selftrain.agentps.recipe import ModelSettings
from selftrain.data.manifest_writing import write_manifest
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task, TaskClass, dump_task

ensure_torchvision()

_tokenizer = cache(load_tokenizer)  # out of the package's file it takes seconds
SPARE_ROWS = 64
_PARTS = (
    "{{% for message in messages %}}<|im_start|>{{{{ message['role'] }}}}\n"
    "{{% for part in message['content'] %}}"
    "{{% if part['type'] == 'text' %}}{{{{ part['text'] }}}}{{% elif part['type'] == 'video' %}}{video}"
    "{{% else %}}{image}{{% endif %}}{{% endfor %}}<|im_end|>\n{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)


@contextmanager
def accelerating(**kinds):
    """An Accelerator of its own: accelerate keeps one setting a process, which other tests may have made."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield Accelerator(**kinds)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def picture(color, size=(90, 60)):
    return Image.new("RGB", size, color)


def tiny_embedded():
    """smollm2_efficientnet with a small random language model."""
    return tiny_mllm(deepcopy(_tokenizer()))


def llava_onevision(album="images", spare=SPARE_ROWS):
    """LLaVA-OneVision as it is saved: more rows in the table than tokens."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokenizer = deepcopy(_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    image_id, video_id = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    rows = len(tokenizer) + spare
    text = Qwen2Config(
        vocab_size=rows, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28,
        patch_size=14, vision_use_head=False,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=image_id, video_token_index=video_id,
        image_grid_pinpoints=[[28, 28], [28, 56]], vision_feature_select_strategy="full",
        vision_feature_layer=-1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    size = {"height": 28, "width": 28}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[28, 28], [28, 56]]),
        tokenizer=tokenizer, video_processor=LlavaOnevisionVideoProcessor(size=size), num_image_tokens=4,
        vision_feature_select_strategy="full", chat_template=_PARTS.format(image="<image>", video="<video>"),
    )  # fmt: skip
    return from_parts("tiny-llava", model, processor, album=album), model, processor


def qwen25_vl():
    """Qwen2.5-VL: another family, other names, images of any size."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = deepcopy(_tokenizer())
    names = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    start, end, image_id, video_id = tokenizer.convert_tokens_to_ids(names)
    text = {
        "vocab_size": len(tokenizer) + 8, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None, "eos_token_id": None,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14,
        "out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 56,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=image_id, video_token_id=video_id,
        vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    around = "<|vision_start|>{}<|vision_end|>"
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56),
        tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor(min_pixels=28 * 28, max_pixels=56 * 56),
        chat_template=_PARTS.format(image=around.format(names[2]), video=around.format(names[3])),
    )  # fmt: skip
    return from_parts("tiny-qwen", model, processor), model, processor


TASK = Task(
    name="rude",
    classes=(TaskClass("rude", "insults somebody"), TaskClass("kind", "does not")),
    positive="rude",
    policy="Insults are rude.",
    questions=(
        Question("insult", "Is there an insult?", ("yes", "no")),
        Question("tone", "What is the tone?", ("angry", "calm", "merry")),
    ),
)


def drawn_posts(count, seed=0):
    """Words decide: `awful` is rude; one post in four lacks an answer."""
    generator = np.random.default_rng(seed)
    posts = []
    for i in range(count):
        rude = bool(generator.integers(2))
        words = ["awful" if rude else "lovely", *["day"] * int(generator.integers(1, 12))]
        process = {"insult": "yes" if rude else "no"} if i % 4 else {}
        if i % 3 == 0:
            process["tone"] = "angry" if rude else ("calm", "merry")[i % 2]
        posts.append(Post(f"p{i}", " ".join(words), (), "rude" if rude else "kind", process))
    return posts


def built_model(variant="agentps", seed=0, **kinds):
    made = ModelSettings(variant=variant, rank=4, alpha=8, hidden=16, max_tokens=96, seed=seed, **kinds)
    return assemble(made, question_set(TASK, variant), tiny_embedded())


RECIPE = """
[model]
base = "base"
rank = 4
alpha = 8
hidden = 16
max_tokens = 96
[frames]
count = {frames}
width = 28
height = 28
[training]
epochs = 2
batch_size = 8
part = 3
learning_rate = 3e-3
head_learning_rate = 3e-3
save_every = 2
metric = "auc"
device = "cpu"
"""


def training_folder(folder, *, posts=60, frames=0):
    """A folder with base/ (a saved LLaVA-OneVision), task.toml, posts.jsonl and recipe.toml."""
    _, whole, processor = llava_onevision()
    whole.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    dump_task(TASK, folder / "task.toml")
    drawn = drawn_posts(posts)
    if frames:
        for color in ("red", "blue"):
            picture(color).save(folder / f"{color}.png")
        pictures = tuple(folder / f"{color}.png" for color in ("red", "blue"))
        drawn = [replace(post, images=pictures[: i % 3]) for i, post in enumerate(drawn)]
    write_manifest(drawn, folder / "posts.jsonl")
    base = str(folder / "base")
    (folder / "recipe.toml").write_text(RECIPE.format(frames=frames).replace('"base"', f'"{base}"'))
    return folder

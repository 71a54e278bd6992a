"""Models of the real architectures, random and small, and posts that they can learn."""

from __future__ import annotations

import json
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from mllm_families import llava_onevision, picture

from backbones.mllm.answering import AnsweringModel, adapt
from backbones.mllm.prompts import Wording
from runs.bench.agentps_speed import tiny_mllm
from selftrain.agentps.checkpoint import FORMAT, AgentPSModel, merge_adapters
from selftrain.agentps.dataset import Example, question_set
from selftrain.agentps.decisions import QuestionDecision, decided
from selftrain.agentps.evaluate import score
from selftrain.agentps.frames import Frames
from selftrain.agentps.model import assemble
from selftrain.agentps.recipe import ModelSettings
from selftrain.data.manifest_writing import write_manifest
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task, TaskClass, dump_task

_embedded = cache(tiny_mllm)  # its tokenizer takes seconds, its weights half of one


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


def tiny_embedded():
    """smollm2_efficientnet with a small random language model."""
    return replace(_embedded(), module=deepcopy(_embedded().module))


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


WORDING = Wording("Post:", ("Is there a face?", "Is it a joke?"), "Is it harmful?")


def answering(mllm, variant="agentps", padding="left", wording=WORDING, budget=96, **kinds):
    """The model of a wording, its adapters as they begin, and its reader."""
    reader = mllm.reader(wording, padding, budget)
    torch.manual_seed(1)
    adapted = adapt(mllm, reader.words.answer_id, rank=4, alpha=8, **kinds)
    model = AnsweringModel(
        adapted, width=mllm.width, answers=(2, 3, 2), variant=variant, answer_id=reader.words.answer_id,
        hidden=16,
    )  # fmt: skip
    return model.eval(), reader


def moved(model):
    """Adapters begin as nothing; move them, so that everything trained counts."""
    with torch.no_grad():
        for name, one in model.named_parameters():
            if one.requires_grad:
                one.add_(torch.randn(one.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05)
    return model


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
    family = llava_onevision()
    folder.mkdir(parents=True, exist_ok=True)
    family.whole.save_pretrained(folder / "base")
    family.processor.save_pretrained(folder / "base")
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


def questioned_run(home):
    """Fill home/run, a finished run of two rounds; its manifest answers a question about every post."""
    from selftrain.data.drawn import draw_posts
    from selftrain.runs import start

    draw_posts(home / "data", 120)
    task, manifest = home / "data" / "task.toml", home / "data" / "manifest.jsonl"
    question = 'name = "loud"\nwording = "Is it loud?"\nanswers = ["yes", "no"]\n'
    task.write_text(f"{task.read_text()}\n[[questions]]\n{question}")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows = [row | {"process": {"loud": "yes" if i % 2 else "no"}} for i, row in enumerate(rows)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = home / "small.toml"
    recipe.write_text(
        'seed = 1\n[data]\nmanifest = "data/manifest.jsonl"\ntask = "data/task.toml"\ntrain_share = 0.5\n'
        "validation_share = 0.3\ntest_share = 0.2\nlabelled = 20\n"
        "[classifier]\nepochs = 20\n[selection]\nk = 10\n[rounds]\nmax = 2\n"
    )
    list(start(recipe, home / "run").rounds())


# ---- merged checkpoints, and posts for their servers ----------------------------------------------------

SHOWN = ModelSettings(
    base="tiny", rank=4, alpha=8, hidden=16, max_tokens=256, frames=Frames(2, 90, 60, repeat=False)
)


def albums(folder):
    """Posts of 0 to 4 pictures, which are sampled down to 2, and one whose picture cannot be read."""
    shown = [(), ("red",), ("blue",), ("blue", "green"), ("green", "blue"), ("red", "red", "green", "blue")]
    posts = []
    for number, colors in enumerate(shown):
        files = tuple(folder / f"{number}-{place}.png" for place in range(len(colors)))
        for color, file in zip(colors, files, strict=True):
            picture(color).save(file)
        posts.append(Example(f"p{number}", "the same words", files, ()))
    (folder / "broken.png").write_bytes(b"no picture")
    return [*posts, Example("broken", "the same words", (folder / "broken.png",), ())]


def merged_and_scored(built, made, task, posts, folder):
    """Move what is trained and merge it; return the folder and what transformers says of the posts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in built.model.parameters():
            if one.requires_grad:
                one.add_(torch.randn(one.shape, generator=generator) * 0.02)
    decisions = tuple(QuestionDecision(slope=0.5, threshold=0.4) for _ in built.questions.all)
    # one at a time, as a server's posts are
    expected = [decided(decisions, one) for one in score(built.model, built.collator, posts, batch_size=1)]
    about = {
        "format": FORMAT, "finished": True, "architecture": made.model_dump(mode="json"),
        "questions": {one.name: list(one.answers) for one in built.questions.all},
        "base_fingerprint": "", "best_epoch": 1, "precision": "float32", "decisions": {},
    }  # fmt: skip
    merge_adapters(AgentPSModel(folder, task, made, built, about, decisions, ""), folder / "merged")
    return folder / "merged", expected

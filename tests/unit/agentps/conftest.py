"""A tiny model, posts that it can learn, and a folder to train in."""

from __future__ import annotations

import numpy as np
import pytest
from accelerate import Accelerator

from selftrain.agentps.architecture import Architecture, assemble
from selftrain.agentps.examples import examples
from selftrain.agentps.questions import questionnaire
from selftrain.bench.agentps_speed import tiny_mllm
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task, TaskClass

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
    made = Architecture(variant=variant, rank=4, alpha=8, hidden=16, max_tokens=96, seed=seed, **kinds)
    return assemble(made, questionnaire(TASK, variant), tiny_mllm())


@pytest.fixture
def task():
    return TASK


@pytest.fixture
def posts():
    return drawn_posts


@pytest.fixture
def build():
    return built_model


@pytest.fixture
def cpu():
    return Accelerator(cpu=True)


@pytest.fixture
def as_examples():
    return lambda posts, built, shares=None: examples(posts, built.asked, shares)

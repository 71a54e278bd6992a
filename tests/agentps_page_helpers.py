"""Folders of AgentPS models made by hand for the tests of their page; every string in them can be chosen.

They are written by the writers of real models, from drawn answers instead of a model's.
"""

from __future__ import annotations

import functools
import json
from unittest import mock

import numpy as np
from PIL import Image, ImageDraw

from selftrain.agentps import checkpoint, decisions, evaluate
from selftrain.agentps.dataset import example, question_set
from selftrain.agentps.decisions import decided, fit_decisions, full_report
from selftrain.agentps.evaluate import ScoredPost, question_scores
from selftrain.agentps.predict import answers_row
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task, TaskClass, dump_task
from selftrain.store import atomic

TWO = Task(
    name="offensive-memes",
    classes=(
        TaskClass("offensive", "insults, threatens or demeans somebody"),
        TaskClass("harmless", "everything else"),
    ),
    positive="offensive",
    policy="A post is offensive when a fair reader would take it as an attack on a person or a group.",
    questions=(
        Question("insult", "Does the post insult somebody?", ("yes", "no")),
        Question("target", "Whom is it aimed at?", ("a person", "a group", "nobody")),
        Question("faces", "Do most of the pictures show a face?", ("yes", "no"), "most"),
    ),
)
FOUR = Task(
    name="kinds-of-abuse",
    classes=tuple(TaskClass(name, f"posts of {name}") for name in ("sexual", "violent", "hateful", "none")),
    positive="violent",
    policy="The worst kind counts.",
)
WORDS = (
    "turnip", "violin", "copper", "island", "again,", "who", "let", "them", "near", "a", "microphone,",
    "honestly,", "every", "single", "Monday", "the", "same", "parade", "of", "hats", "and", "nobody", "says",
    "a", "word", "while", "my", "neighbour's", "parrot", "writes", "better", "columns",
)  # fmt: skip


def drawn_posts(task, count, seed=0, pictures=()):
    """Posts with labels and most of their process answers; every third has a picture, if there are any."""
    generator = np.random.default_rng(seed)
    posts = []
    for i in range(count):
        words = generator.choice(WORDS, int(generator.integers(4, 60)))
        process = {
            one.name: str(generator.choice(one.answers))
            for one in task.questions
            if generator.random() < 0.85
        }
        shown = (
            tuple(pictures[(i + k) % len(pictures)] for k in range(1 + i % 5))
            if pictures and i % 3 == 0
            else ()
        )
        label = task.names[int(generator.integers(len(task.names)))]
        posts.append(Post(f"post-{i:05d}", " ".join(words), shown, label, process))
    return posts


def drawn_answers(asked, post, generator, skill=1.1):
    """Probabilities that lean towards the truth."""
    known = example(post, asked).targets
    answers = []
    for question, target in zip(asked.all, known, strict=True):
        logits = generator.normal(size=len(question.answers)) + skill * target
        answers.append((np.exp(logits) / np.exp(logits).sum()).astype(np.float32))
    return tuple(answers)


def picture_files(place, count):
    """Pictures that can be told apart."""
    place.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    files = []
    for i in range(count):
        image = Image.new("RGB", (320, 220), tuple(int(v) for v in generator.integers(40, 220, 3)))
        pen = ImageDraw.Draw(image)
        for _ in range(6):
            x, y, r = (int(v) for v in generator.integers(10, 200, 3))
            pen.ellipse((x, y, x + r, y + r), fill=tuple(int(v) for v in generator.integers(0, 255, 3)))
        files.append(place / f"{i}.png")
        image.save(files[-1])
    return files


def made(
    place,
    task,
    posts,
    *,
    epochs=0,
    steps=0,
    seed=0,
    unread=(),
    skill=1.1,
    variant=None,
    resamples=8,
    rules=None,
):
    """A model's folder, or with `epochs` = 0 that of an evaluation; gives the scored posts.

    Args:
        unread: Ids of posts whose pictures could not be read.
        resamples: Of the intervals; few, for the page only shows them.
    """
    place.mkdir(parents=True, exist_ok=True)
    asked = question_set(task, variant or ("agentps" if task.questions else "vanilla"))
    generator = np.random.default_rng([seed, 7])
    scored = [
        ScoredPost(example(post, asked), (), "broken picture") if post.id in unread
        else ScoredPost(example(post, asked), drawn_answers(asked, post, generator, skill))
        for post in posts
    ]  # fmt: skip
    made_of = fit_decisions(question_scores(asked, scored), rules or {})
    scored = [decided(made_of, one) for one in scored]
    few = functools.partial(decisions.threshold_intervals, resamples=resamples)
    with mock.patch.object(decisions, "threshold_intervals", few):
        figures = full_report(asked, scored, made_of)
    metrics = {"model": "abc123" * 10, "questions": figures}
    if epochs:
        headline = evaluate.headline(asked, scored)
        rows = [
            {name: value if name == "posts" else value * (0.8 + 0.2 * (1 - abs(n - epochs // 2) / epochs))
             for name, value in headline.items()}
            for n in range(epochs)
        ]  # fmt: skip
        validations = [
            {"epoch": n + 1, "step": (n + 1) * (steps or epochs) // epochs, "metrics": row}
            for n, row in enumerate(rows)
        ]
        metrics = {"validations": validations, "best": epochs // 2, "questions": figures}
        about = {
            "format": 3, "architecture": {"base": "smollm2_efficientnet", "variant": "agentps", "rank": 128},
            "metric": "macro_f1", "finished": True,
        }  # fmt: skip
        atomic.write_json(place / checkpoint.ABOUT, about)
    if steps:
        lines = []
        for step in range(steps):
            parts = [float(0.3 + np.exp(-3 * step / steps) * generator.uniform(0.5, 0.9)) for _ in asked.all]
            lines.append({"step": step, "loss": sum(parts), "parts": parts})
        (place / "losses.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    dump_task(task, place / checkpoint.TASK)
    atomic.write_json(place / checkpoint.METRICS, metrics)
    atomic.write_jsonl(place / checkpoint.VALIDATION, (answers_row(asked, one) for one in scored))
    return scored

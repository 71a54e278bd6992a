"""One training and its figures on posts that it has not seen: the cells of the AgentPS study."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from backbones.mllm.answering import Variant
from backbones.mllm.load import load_mllm
from backbones.mllm.smollm2_efficientnet import from_parts
from runs.bench.small_models import QWEN, load_qwen
from selftrain._util.types import BoolArray, FloatArray, Json
from selftrain.agentps.dataset import QuestionSet, example, question_set
from selftrain.agentps.evaluate import ScoredPost, headline, question_scores, score
from selftrain.agentps.frames import Frames
from selftrain.agentps.model import assemble
from selftrain.agentps.recipe import Divisor, ModelSettings, TrainingSettings
from selftrain.agentps.steps import train
from selftrain.agentps.train import make_accelerator
from selftrain.data.importers import hateful_memes as memes
from selftrain.data.importers import hsol
from selftrain.data.importers.base import Record
from selftrain.data.manifest import read_manifest
from selftrain.data.model_answers import PROVENANCE
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task, TaskClass
from selftrain.errors import DataError
from selftrain.models.metrics import threshold_intervals, threshold_metrics
from selftrain.models.operating_points import Goal, find_threshold
from selftrain.models.predictor import ValidationScores
from selftrain.models.train_loop import LOSSES, best_epoch

if TYPE_CHECKING:
    from backbones.mllm.base import Mllm

# as published but for the rank: 128 of 576 dimensions would be a fifth of the model
RANK, ALPHA = 16, 32
RATE = 3e-4
VALIDATION = 300
HELD_OUT = 3000
_AGAIN = 1000  # added to the seed of a training that is drawn again

# ---- what is varied -------------------------------------------------------------------------------------

Labels = Literal["as given", "soft", "20 % wrong", "40 % wrong", "a quarter"]
"""Process labels of the training posts: those of the data set; the probabilities of a text classifier that
has not seen the post; a share of them turned round; or three quarters of the posts without any."""


class Way(NamedTuple):
    """One way to train: the model's settings, and what its process labels are like."""

    variant: Variant
    rounds: bool = False
    fed: bool = False
    labels: Labels = "as given"
    divisor: Divisor = "posts"
    again: bool = False  # the same posts, other first weights and another order: what one training's luck is


WAYS: Mapping[str, Way] = {
    "vanilla": Way("vanilla"),
    "vanilla, asked": Way("vanilla_asked"),
    "multitask": Way("multitask"),
    "multitask, asked": Way("multitask_asked"),
    "agentps": Way("agentps"),
    "agentps, rounds": Way("agentps", rounds=True),
    "agentps, fed": Way("agentps", fed=True),
    "multitask, fed": Way("multitask", fed=True),
    "agentps, soft": Way("agentps", labels="soft"),
    "agentps, 20 % wrong": Way("agentps", labels="20 % wrong"),
    "agentps, 40 % wrong": Way("agentps", labels="40 % wrong"),
    "vanilla, again": Way("vanilla", again=True),
    "agentps, again": Way("agentps", again=True),
    "agentps, a quarter": Way("agentps", labels="a quarter"),
    "agentps, a quarter, by expected": Way("agentps", labels="a quarter", divisor="expected"),
    "agentps, a quarter, by answers": Way("agentps", labels="a quarter", divisor="answers"),
}


class Place(NamedTuple):
    """Where a study works.

    Attributes:
        work: Where trainings stand.
        epochs: Passes; the best of them by AUC on validation posts is measured.
        cpu: Even where there is a GPU.
        precision: Of the products.
    """

    work: Path
    epochs: int
    cpu: bool
    precision: Literal["float32", "bfloat16"]


class Drawn(NamedTuple):
    """Posts of one seed: to train on, to choose the epoch and the threshold by, and to measure on."""

    task: Task
    train: list[Post]
    validation: list[Post]
    test: list[Post]


# ---- data sets ------------------------------------------------------------------------------------------


def hateful_memes(n: int, seed: int, data: Path) -> Drawn:
    """Words of Hateful Memes, split by their text: a text, whatever its labels, stands in one part only.

    The development posts are not used: many repeat a training text with the other label.
    """
    found = [
        Post(one.id, one.text, (), one.label, one.process)
        for one in memes.read(data / "fhm_text").records
        if isinstance(one, Record) and one.extra["split"] == "train"
    ]
    groups = defaultdict(list)
    for post in found:
        groups[_words(post)].append(post)
    texts = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(texts))
    shuffled = [post for place in order for post in groups[texts[place]]]
    borders = (_past_group(shuffled, place) for place in (HELD_OUT, HELD_OUT + VALIDATION))
    first, second = borders
    return Drawn(memes.TASK, shuffled[second : second + n], shuffled[first:second], shuffled[:first])


def _past_group(posts: Sequence[Post], place: int) -> int:
    """Return the first place from `place` on where another text begins."""
    while _words(posts[place]) == _words(posts[place - 1]):
        place += 1
    return place


def _words(post: Post) -> str:
    return " ".join(post.text.lower().split())


SEVERITY = Task(
    name="harmful-memes",
    classes=(
        TaskClass("harmful", "harms a person, a group or society"),
        TaskClass("harmless", "harms nobody"),
    ),
    positive="harmful",
    policy="A meme is harmful when it abuses, threatens or misleads to somebody's damage.",
    questions=(
        Question(
            "severity", "How much harm would it do?", ("not harmful", "somewhat harmful", "very harmful")
        ),
    ),
)


def harmeme(n: int, seed: int, data: Path) -> Drawn:
    """HarMeme with its pictures; its annotators' severity is the process label. A tenth of all is test.

    No picture and no text stands on both sides of the border to the test.
    """
    posts = [
        replace(post, process={"severity": str(post.extra["severity"])})
        for name in ("train", "val")
        for post in read_manifest(data / "harmeme" / f"{name}.jsonl").posts
        if post.label is not None
    ]
    order = np.random.default_rng(seed).permutation(len(posts))
    shuffled = [posts[place] for place in order]
    tenth = len(posts) // 10
    test, rest = shuffled[:tenth], shuffled[tenth:]
    seen = {key for post in test for key in _contents(post)}
    rest = [post for post in rest if not seen & set(_contents(post))]
    return Drawn(SEVERITY, rest[VALIDATION : VALIDATION + n], rest[:VALIDATION], test)


def _contents(post: Post) -> list[str]:
    """Return what makes two posts copies: the same words, or the same picture."""
    pictures = [hashlib.sha256(path.read_bytes()).hexdigest() for path in post.images]
    return [*pictures, *([post.text.strip().lower()] if post.text.strip() else [])]


def _pairs_task(name: str, meaning: str, other: str) -> Task:
    return Task(
        name=name,
        classes=(TaskClass("yes", meaning), TaskClass("no", other)),
        positive="yes",
        policy=f"Of two tweets, {meaning}.",
        questions=(
            Question("first", "Is the first tweet offensive?", ("yes", "no")),
            Question("second", "Is the second tweet offensive?", ("yes", "no")),
        ),
    )


EXACTLY_ONE = _pairs_task("exactly-one", "exactly one is offensive", "both are, or neither is")
FIRST_ALONE = _pairs_task("first-alone", "the first is offensive and the second is not", "it is otherwise")
_LONGEST = 140  # characters of a tweet: pairs of longer ones would say no more, and cost more


def pairs(task: Task, n: int, seed: int, data: Path) -> Drawn:
    """Pairs of HSOL's tweets, whose label is a function of the two process answers.

    n pairs to train on, n // 3 to validate and n to test; no tweet is in two pairs.

    Args:
        task: `EXACTLY_ONE` or `FIRST_ALONE`.
        n, seed, data: As of the other data sets.

    Raises:
        DataError: Too few tweets for so many pairs.
    """
    generator = np.random.default_rng([seed, 3])
    tweets: dict[str | None, list[str]] = {"offensive": [], "inoffensive": []}
    for record in hsol.read(data / "hsol").records:
        if isinstance(record, Record) and len(record.text) <= _LONGEST:
            tweets[record.label].append(" ".join(record.text.split()))  # a line each
    count = n + n // 3 + n
    drawn = {label: generator.permutation(sorted(set(texts))) for label, texts in tweets.items()}
    for label, chosen in drawn.items():
        if len(chosen) < count + 1:
            raise DataError(f"{n} pairs take {count + 1} {label} tweets, {len(chosen)} are there: lower --n")
    left = {label: iter(chosen) for label, chosen in drawn.items()}
    posts = []
    for i in range(count):
        first, second = bool((i >> 1) & 1), bool(i & 1)  # the four kinds of pairs, one after another
        texts = [str(next(left["offensive" if one else "inoffensive"])) for one in (first, second)]
        positive = first != second if task is EXACTLY_ONE else first and not second
        answers = {"first": "yes" if first else "no", "second": "yes" if second else "no"}
        text = f"First tweet: {texts[0]}\nSecond tweet: {texts[1]}"
        posts.append(Post(f"pair-{i}", text, (), "yes" if positive else "no", answers))
    return Drawn(task, posts[:n], posts[n : n + n // 3], posts[n + n // 3 :])


# ---- process labels -------------------------------------------------------------------------------------


def relabel(posts: Sequence[Post], task: Task, labels: Labels, seed: int) -> list[Post]:
    """Return training posts with the process labels that a way wants."""
    generator = np.random.default_rng([seed, 2])
    match labels:
        case "as given":
            return list(posts)
        case "a quarter":
            told = generator.random(len(posts)) < 0.25
            return [post if one else replace(post, process={}) for post, one in zip(posts, told, strict=True)]
        case "soft":
            return _guessed(posts, task)
        case _:
            share = float(labels.split(" ")[0]) / 100
            return [replace(post, process=_turned(post.process, task, share, generator)) for post in posts]


def _turned(
    process: Mapping[str, str], task: Task, share: float, generator: np.random.Generator
) -> dict[str, str]:
    """Return the answers, each another one with probability `share`."""
    turned = dict(process)
    for question in task.questions:
        if question.name in process and generator.random() < share:
            others = [one for one in question.answers if one != process[question.name]]
            turned[question.name] = str(generator.choice(others))
    return turned


def _guessed(posts: Sequence[Post], task: Task) -> list[Post]:
    """Return the posts with the answers, and their probabilities, of a classifier trained on other posts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline

    said: list[dict[str, dict[str, Any]]] = [{} for _ in posts]
    for place, question in enumerate(task.questions):
        texts = [_about(post.text, place) for post in posts]
        classifier = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10.0))
        known = [post.process[question.name] for post in posts]
        probs = cross_val_predict(classifier, texts, known, cv=5, method="predict_proba")
        names = sorted(set(known))
        for one, row in zip(said, probs, strict=True):
            one[question.name] = {"answer": names[int(row.argmax())], "probability": float(row.max())}
    return [
        replace(
            post,
            process={name: answer["answer"] for name, answer in one.items()},
            extra={**post.extra, PROVENANCE: one},
        )
        for post, one in zip(posts, said, strict=True)
    ]


def _about(text: str, question: int) -> str:
    """Return what a question is about: of a pair the tweet in its place, else the whole text."""
    lines = text.split("\n")
    return lines[question] if text.startswith("First tweet: ") else text


# ---- a cell ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _base(name: str, seed: int) -> Mllm:
    if name in QWEN:
        language = load_qwen(name, torch.float32)
        return from_parts(name, language.model.model, language.tokenizer, seed=seed)
    return load_mllm(name, seed=seed)


class Tested(NamedTuple):
    """What one way makes of B test and V validation posts: the probability of the answer looked for."""

    truth: BoolArray  # [B] of the final question
    scores: FloatArray  # [B] of the epoch that was chosen
    by_epoch: FloatArray  # [E, B] after each epoch
    validation_truth: BoolArray  # [V]
    validation_by_epoch: FloatArray  # [E, V]
    figures: dict[str, float]


def _settings(
    way: Way, base: str, seed: int, place: Place, *, pictures: bool
) -> tuple[ModelSettings, TrainingSettings]:
    model = ModelSettings(
        base=base, variant=way.variant, rounds=way.rounds, fed=way.fed, rank=RANK, alpha=ALPHA, seed=seed,
        frames=Frames(count=1, width=224, height=224, repeat=False) if pictures else None,
    )  # fmt: skip
    training = TrainingSettings(
        epochs=place.epochs, learning_rate=RATE, metric="auc", divisor=way.divisor,
        device="cpu" if place.cpu else "auto", precision=place.precision,
        workers=2 if pictures and not place.cpu else 0,  # a fork keeps the memory that training had then
        attention="eager" if place.cpu and place.precision == "bfloat16" else "auto",
        part_tokens=1536 if place.cpu else None,  # 1.5 MB a token
    )  # fmt: skip
    return model, training


def cell(drawn: Drawn, way: Way, base: str, seed: int, place: Place) -> Tested:
    """Train one way, and measure it on the test posts.

    Args:
        drawn: Posts.
        way: What is trained on them.
        base: As of a recipe's `model.base`, or one of `small_models.QWEN`, which has the same chat.
        seed: Of first weights, of the order and of what is turned round.
        place: Where, and how long.

    Returns:
        Scores and figures of the final question: those of `threshold_metrics`, with 95 % intervals of AUC and
        macro-F1, and F1 at the threshold that is best on the validation posts; mean AUC of the process
        questions with two answers, where they have heads. The epoch is chosen by AUC on the validation posts.
    """
    pictures = any(post.images for post in drawn.train)
    posts = relabel(drawn.train, drawn.task, way.labels, seed)
    seed += _AGAIN * way.again
    made, settings = _settings(way, base, seed, place, pictures=pictures)
    # TensorFloat-32 on a GPU: fewer kernels than autocast, and these are small
    torch.set_float32_matmul_precision("high")
    accelerator = make_accelerator(settings)
    precise = accelerator.mixed_precision == "no"
    untouched = _base(base, seed if pictures else 0)  # the projector of pictures is drawn
    asked = question_set(drawn.task, way.variant, rounds=way.rounds)
    built = assemble(made, asked, replace(untouched, module=deepcopy(untouched.module)))
    chosen, measured = ([example(post, asked) for post in part] for part in (drawn.validation, drawn.test))

    def scored(which: Any) -> list[Any]:  # noqa: ANN401
        device = accelerator.device
        return list(
            score(
                built.model, built.collator, which, batch_size=32, device=device, precise=precise,
                workers=settings.workers,
            )
        )  # fmt: skip

    told = [made.model_dump(mode="json"), settings.model_dump(), way, drawn.task.name, len(posts)]
    identity = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    folder = place.work / f"cell-{identity[:16]}"
    folder.mkdir(parents=True, exist_ok=True)

    def validate(_: object) -> Json:
        """Keep what this epoch makes of all posts, in a file: a training that was killed goes on."""
        validated = scored(chosen)
        steps = len((folder / LOSSES).read_text().splitlines())
        _keep_scores(folder / f"epoch-{steps:06}.npz", asked, validated, scored(measured))
        return headline(asked, validated)

    results = train(
        built, [example(post, asked) for post in posts], settings=settings, seed=seed,
        folder=folder, identity=identity, accelerator=accelerator, validate=validate,
    )  # fmt: skip
    epochs = [dict(np.load(file)) for file in sorted(folder.glob("epoch-*.npz"))]
    shutil.rmtree(folder)
    return _tested(epochs, best_epoch(results, "auc").epoch)


def _keep_scores(
    file: Path, asked: QuestionSet, validated: Sequence[ScoredPost], tested: Sequence[ScoredPost]
) -> None:
    *process, final = question_scores(asked, tested)
    known = question_scores(asked, validated)[-1]
    aucs = [
        threshold_metrics(one.found, one.scores)["auc"] for one in process if len(one.question.answers) == 2
    ]
    np.savez(
        file, truth=final.found, scores=final.scores, process_aucs=aucs,
        validation_truth=known.found, validation=known.scores,
    )  # fmt: skip


def _tested(epochs: Sequence[Mapping[str, Any]], best: int) -> Tested:
    """Return scores, and figures of the epoch that was chosen, from 1."""
    chosen = epochs[best - 1]
    truth, scores = chosen["truth"], chosen["scores"]
    known = ValidationScores(chosen["validation_truth"].astype(np.int16), chosen["validation"])
    tuned = find_threshold(known, Goal("f1")).threshold
    result = threshold_metrics(truth, scores)
    result["f1_tuned"] = threshold_metrics(truth, (scores >= tuned).astype(np.float64))["f1"]
    result["best_epoch"] = float(best)
    if len(chosen["process_aucs"]):
        result["process_auc"] = float(chosen["process_aucs"].mean())
    for metric, value in threshold_intervals(truth, scores).items():
        if metric in ("auc", "macro_f1"):
            result |= {f"{metric}_low": value.low, f"{metric}_high": value.high}
    return Tested(
        truth, scores, np.stack([one["scores"] for one in epochs]),
        chosen["validation_truth"], np.stack([one["validation"] for one in epochs]), result,
    )  # fmt: skip

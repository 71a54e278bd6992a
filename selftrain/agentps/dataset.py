"""What the model is asked about every post, and the posts with their targets that it learns from.

Shape legend: ``Q`` process questions, ``K`` answers of a question.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeGuard

import numpy as np

from backbones.mllm.answering import ASKING, Variant
from backbones.mllm.prompts import Wording
from selftrain._util.object_urls import local_path
from selftrain._util.printable import first_of
from selftrain._util.types import Float32Array, Json
from selftrain.agentps.recipe import SourceSettings
from selftrain.data.manifest import ManifestReport, read_manifest
from selftrain.data.model_answers import ORIGIN, PROVENANCE, answer_table, by_people
from selftrain.data.posts import MAX_ALBUM, Post
from selftrain.data.splits import parts_by_column, require
from selftrain.data.task import Question, Task, load_task
from selftrain.errors import DataError, RecipeError, SplitError, TaskError
from selftrain.review.estimates import BatchOutcome, outcome
from selftrain.review.ledger_reader import LEDGER, LedgerReader
from selftrain.store.run_dir import RunFolder, read_jsonl
from selftrain.store.scores import FILE as SCORES

FINAL = "final"
Target = Float32Array
_ABOVE_CHANCE = 1e-6  # what keeps an answer the largest of its target, however little its model believed it

# ---- questions ------------------------------------------------------------------------------------------


class QuestionSet(NamedTuple):
    """The questions of a task as one variant asks them; answers stand in the order of the logits."""

    process: tuple[Question, ...]  # the Q process questions that have a head
    final: Question  # the classes
    positive: int  # the index of the class that is looked for
    wording: Wording  # the words around every post, with the questions where the variant asks them

    @property
    def all(self) -> tuple[Question, ...]:
        """Return every question that has a head, the final one last."""
        return (*self.process, self.final)


def question_set(task: Task, variant: Variant, *, policy: bool = False, rounds: bool = False) -> QuestionSet:
    """Return the questions of `task` as a variant asks them, with heads where it has them.

    `policy` puts the policy before the post, otherwise only the meaning of the positive class; `rounds` asks
    each question in a turn of its own. TaskError: no questions, for a variant that asks, or one called like
    the final one.
    """
    if variant != "vanilla" and not task.questions:
        raise TaskError(
            f"task {task.name!r} has no questions, and the variant {variant!r} learns from their answers:"
            " add [[questions]] to the task (`selftrain data tasks` shows some), or set"
            ' model.variant = "vanilla"'
        )
    if task.question(FINAL) is not None:
        raise TaskError(f"a question is called {FINAL!r}, which stands for the classes: rename it")
    meaning = next(one.meaning for one in task.classes if one.name == task.positive)
    if len(task.classes) == 2:
        closing = f"Is this post {_spoken(task.positive)}: {meaning}?"
    else:
        closing = f"Which is it: {', '.join(map(_spoken, task.names))}?"
    asking = ASKING[variant]
    return QuestionSet(
        tuple(task.questions) if asking.answered else (),
        Question(FINAL, closing, task.names),
        task.names.index(task.positive),
        Wording(
            f"Policy: {task.policy}\nPost:" if policy else "Post:",
            tuple(one.wording for one in task.questions) if asking.asked else (),
            closing,
            rounds,
        ),
    )


def _spoken(name: str) -> str:
    """Return the name of a class as a word in a sentence: ``not_hateful`` as "not hateful"."""
    return name.replace("_", " ").replace("-", " ")


# ---- posts with targets ---------------------------------------------------------------------------------


class Example(NamedTuple):
    """One post."""

    id: str  # as in its manifest
    text: str  # may be empty
    pictures: tuple[Path, ...]  # image files, or one video
    targets: tuple[Target, ...]  # one [K] a question, the final one last; zeros where nobody answered


def example(post: Post, questions: QuestionSet, *, final: Target | None = None) -> Example:
    """Return a post with what is known of it; its video, if it has one, stands for its pictures.

    `final` is the final question's target [K]; None: the post's label, as a person's. TaskError, DataError: a
    label or an answer that the task does not know; a model's that cannot be read.
    """
    pictures = post.images if post.video is None else (post.video,)
    told = answer_table(post, PROVENANCE) if questions.process else {}
    process = (
        make_target(one.answers, post.process.get(one.name), _answer_prob(post, one, told.get(one.name)))
        for one in questions.process
    )
    if final is None:
        final = make_target(questions.final.answers, post.label)
    return Example(post.id, post.text, pictures, (*process, final))


def _answer_prob(post: Post, question: Question, entry: object) -> float:
    """Return what an answer is worth as a target: a model's own probability, or 1 for a person's.

    `entry` is what the post tells of a model's answer. DataError: a probability that is none.
    """
    # an answer that differs from the model's was corrected by a person
    if not isinstance(entry, dict) or entry.get("answer") != post.process.get(question.name):
        return 1.0
    prob = entry.get("probability")
    if prob is None:
        return 1.0
    if not _is_prob(prob):
        raise DataError(
            f"post {post.id!r}: {PROVENANCE} gives the answer to {question.name!r} the probability"
            f" {prob!r:.80}; expected a number in [0, 1], or none: correct it, or take the field out"
        )
    return max(float(prob), 1.0 / len(question.answers) + _ABOVE_CHANCE)


def make_target(answers: Sequence[str], answer: str | None, prob: float = 1.0) -> Target:
    """Return [K] `prob` for the answer, the rest evenly over the others; zeros where there is no answer.

    TaskError: an answer outside `answers`.
    """
    if answer is None:  # the loss leaves it out
        return np.zeros(len(answers), dtype=np.float32)
    if answer not in answers:
        raise TaskError(f"the answer {answer!r} is none of {list(answers)}: correct it, or leave it out")
    target = np.full(len(answers), (1.0 - prob) / (len(answers) - 1), dtype=np.float32)
    target[answers.index(answer)] = prob
    return target


def answer_of(target: Target) -> int | None:
    """Return the index of the answer that a target stands for; None where it is missing."""
    return int(target.argmax()) if target.any() else None


def count_answers(questions: QuestionSet, posts: Iterable[Example]) -> dict[str, dict[str, int]]:
    """Return question -> answer -> how many posts have it."""
    found = {one.name: dict.fromkeys(one.answers, 0) for one in questions.all}
    for post in posts:
        for question, target in zip(questions.all, post.targets, strict=True):
            answer = answer_of(target)
            if answer is not None:
                found[question.name][question.answers[answer]] += 1
    return found


# ---- which posts ----------------------------------------------------------------------------------------


class LabelledPosts(NamedTuple):
    """Posts with labels, and what was left out."""

    task: Task  # classes, policy, questions
    train: list[Post]  # posts to learn from
    validation: list[Post]  # posts to choose the best epoch and thresholds by; none of them is in `train`
    quarantine: list[Json]  # rows left out, each with its reason
    # post id -> the target [K] of the final question of a pseudo-label or of a reviewed sample (ACT)
    final_targets: Mapping[str, Target] = {}
    signed: bool = False  # there is such a sample: targets may leave [0, 1]

    def examples(self, questions: QuestionSet) -> tuple[list[Example], list[Example]]:
        """Return the labelled posts to learn from, and those to validate on."""
        train = [
            example(post, questions, final=self.final_targets.get(post.id))
            for post in self.train
            if post.label is not None
        ]
        return train, [example(post, questions) for post in self.validation]


def load_posts(sources: SourceSettings, seed: int) -> LabelledPosts:
    """Read the posts that a recipe's data section names.

    Raises:
        RecipeError: Neither or both of run and manifest, or a manifest without a task.
        DataError: A class without a post to learn from or to validate on; and what reading them raises.
    """
    if (sources.run is None) == (sources.manifest is None):
        raise RecipeError(
            f"data.run is {sources.run} and data.manifest is {sources.manifest}: expected one of the two,"
            " a finished run or a manifest with labels"
        )
    if sources.run is not None:
        found = _of_run(sources.run, sources, seed)
    elif sources.reviews is not None:
        raise RecipeError("data.reviews names a batch of a run's ledger, but data.run names no run")
    else:
        found = _of_manifest(sources, seed)
    if sources.process is not None:
        found = _with_process(found, sources.process, sources)
    require(found.train, found.task.names, 1, "what is learned from")
    require(found.validation, found.task.names, 1, "what is validated on")
    return found


def _of_run(run: Path, sources: SourceSettings, seed: int) -> LabelledPosts:
    """Read the grown dataset to train on, and what validates: a manifest of its own, else the run's posts."""
    folder = RunFolder(run)
    files = folder.data_section()
    own_task = folder.path / "task.toml"
    task = load_task(sources.task or (own_task if own_task.exists() else Path(files["task"])))
    grown = {str(row["id"]): row for row in read_jsonl(folder.path / "grown.jsonl")}
    validated = _scored(folder, "validation")
    posts, quarantine = dict[str, Post](), list[Json]()
    own = sources.model_copy(update={"columns": files.get("columns", {})})
    for name in ("manifest", "validation", "pool"):  # never the test's
        if files.get(name) is not None:
            read, left_out = read_posts(local_path(files[name]), task, own)
            posts |= {post.id: post for post in read}
            quarantine += left_out
    known = dict.fromkeys((*grown, *(() if sources.validation else validated)))
    quarantine += _gone(run, known, posts, sources)
    # what the run knew of a post: its manifest may hold answers that the run hid with the label
    train = [
        replace(
            posts[i], label=str(row["label"]), process=dict(row.get("process", {})),
            extra={**posts[i].extra, ORIGIN: row[ORIGIN]},
        )
        for i, row in grown.items() if i in posts
    ]  # fmt: skip
    validation = [replace(posts[i], label=label) for i, label in validated.items() if i in posts]
    if sources.validation is not None:
        validation, left_out = read_posts(sources.validation, task, sources)
        quarantine += left_out
    elif grown.keys() & validated.keys():  # a run without a validation split leaves labelled posts out
        people = [post for post in train if post.id in validated]
        validation = _draw_validation(people, sources.validation_share, seed)
    found = _labelled(task, train, validation, quarantine, sources)
    if sources.reviews is None:
        return found
    hidden = {i: replace(post, process={}) for i, post in posts.items() if post.label is not None}
    seen = {post.id: post for post in found.train}
    return _with_reviews(found, run, sources.reviews, posts | hidden | seen)


def _gone(run: Path, known: Collection[str], posts: Collection[str], sources: SourceSettings) -> list[Json]:
    """Return which posts that a run knows its manifests no longer have; QuarantineError: too many."""
    gone = [one for one in known if one not in posts]
    sources.tolerance.check(
        len(gone), len(known), [f"  id {one!r}" for one in gone[:10]], what="posts", where=f"{run}: ",
        fault="are in no manifest of the run any more",
    )  # fmt: skip
    return [{"kind": "gone", "id": one, "reason": "in no manifest of the run any more"} for one in gone]


def _scored(folder: RunFolder, split: str) -> dict[str, str]:
    """Return post id -> label of what the run's best round was measured on."""
    rows = read_jsonl(folder.round_path(folder.best_round()) / SCORES)
    return {str(row["id"]): str(row["label"]) for row in rows if row["split"] == split}


def run_test_posts(run: Path, task: Task, sources: SourceSettings) -> list[Post]:
    """Return the test posts of a run, which nothing was chosen or learned by; none where it has none.

    QuarantineError: its manifests no longer have more of them than tolerated.
    """
    folder = RunFolder(run)
    files, tested = folder.data_section(), _scored(folder, "test")
    sources = sources.model_copy(update={"columns": files.get("columns", {})})
    named = [local_path(files[name]) for name in ("manifest", "test") if files.get(name) is not None]
    posts = {post.id: post for file in named for post in read_posts(file, task, sources)[0]}
    _gone(run, tested, posts, sources)
    return [replace(posts[i], label=label) for i, label in tested.items() if i in posts]


def _of_manifest(sources: SourceSettings, seed: int) -> LabelledPosts:
    if sources.task is None:
        raise RecipeError("data.manifest is named without data.task: name the task whose labels it holds")
    assert sources.manifest is not None
    task = load_task(sources.task)
    posts, quarantine = read_posts(sources.manifest, task, sources)
    train, validation = [post for post in posts if post.label is not None], list[Post]()
    if has_splits(train):
        parts = parts_by_column(train)
        train, validation = list(parts["labelled"]), list(parts["validation"])
    if sources.validation is not None:
        validation, left_out = read_posts(sources.validation, task, sources)
        quarantine = quarantine + left_out
    elif not validation:
        validation = _draw_validation(train, sources.validation_share, seed)
    return _labelled(task, train, validation, quarantine, sources)


def _labelled(
    task: Task, train: Iterable[Post], validation: list[Post], quarantine: list[Json], sources: SourceSettings
) -> LabelledPosts:
    """Return what is learned from, less what validates; pseudo-labels are worth what is said of them."""
    ids = {post.id for post in validation}
    posts = list(train)
    kept = [post for post in posts if post.id not in ids]
    if posts and not kept:
        raise SplitError(
            f"all {len(posts):,} posts to learn from are among those that validate, so that none is left:"
            " name others as data.validation, or lower data.validation_share"
        )
    if sources.validation is not None:
        quarantine = [*quarantine, *(_validates_too(post) for post in posts if post.id in ids)]
    soft = {
        post.id: _soft_target(post, task.names, sources.soft_target)
        for post in kept
        if post.label is not None and not by_people(post)
    }
    return LabelledPosts(task, kept, validation, quarantine, soft)


def _validates_too(post: Post) -> Json:
    return {"kind": "copy", "id": post.id, "reason": "data.validation has a post of this id, which validates"}


def _soft_target(post: Post, names: Sequence[str], without: float) -> Target:
    """Return the posterior of a machine's label [K], or a target of `without` where there is none.

    DataError: what stands there is no posterior over these classes.
    """
    posterior = answer_table(post, ORIGIN).get("posterior")
    if posterior is None:
        return make_target(names, post.label, without)
    match posterior:
        case {"probs": dict(probs)} if set(probs) == set(names) and _are_probs(probs.values()):
            return np.array([probs[name] for name in names], dtype=np.float32)
    raise DataError(
        f"post {post.id!r}: {ORIGIN}.posterior is {posterior!r:.80}; expected `probs` with a probability of"
        f" each of {list(names)}, 1 together, as a run writes it: correct it, or take the posterior out"
    )


def _are_probs(values: Collection[object]) -> bool:
    """Return whether these are probabilities of all there is, as far as rounded ones add up to 1."""
    numbers = [value for value in values if _is_prob(value)]
    return len(numbers) == len(values) and abs(sum(numbers) - 1) <= 1e-3


def _is_prob(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _draw_validation(posts: Iterable[Post], share: float, seed: int) -> list[Post]:
    """Draw a share of what people labelled of each class to validate on, at least one; in their order."""
    known = [post for post in posts if by_people(post)]
    generator = np.random.default_rng([seed, 1])
    chosen: set[str] = set()
    for label in dict.fromkeys(post.label for post in known):
        ids = [post.id for post in known if post.label == label]
        wanted = max(round(share * len(ids)), 1)
        chosen |= {ids[i] for i in generator.permutation(len(ids))[:wanted]}
    return [post for post in known if post.id in chosen]


def _with_reviews(found: LabelledPosts, run: Path, batch: str, posts: Mapping[str, Post]) -> LabelledPosts:
    """Add the posts of a reviewed sample, with targets that make their loss ACT's.

    ``t_m + (t_h - t_m) delta / pi``: cross-entropy is linear in its target, so that the mean over many draws
    is the loss of human labels for every post of the batch, whatever the machine's labels are worth.
    """
    reviewed = _reviewed(run, batch)
    chances = reviewed.chances
    names, targets = found.task.names, {}
    for i, post_id in enumerate(reviewed.post_ids):
        machine, human = make_target(names, reviewed.machine[i]), reviewed.human[i]
        correction = 0.0 if human is None else (make_target(names, human) - machine) / chances[i]
        targets[post_id] = (machine + correction).astype(np.float32)
    labels = dict(zip(reviewed.post_ids, reviewed.labels, strict=True))
    kept = [post for post in found.train if post.id not in labels]
    known = {post.id for post in found.validation}
    added = [replace(posts[i], label=label) for i, label in labels.items() if i in posts and i not in known]
    return found._replace(train=kept + added, final_targets={**found.final_targets, **targets}, signed=True)


def _reviewed(run: Path, batch: str) -> BatchOutcome:
    """Read a batch of the run's ledger, once every post drawn has its answer."""
    ledger = LedgerReader(run / LEDGER)
    try:
        if batch not in ledger.batches():
            raise RecipeError(f"data.reviews is {batch!r}; expected one of {ledger.batches()}")
        drawn, waiting = ledger.drawn(batch), set(ledger.waiting())
        missing = sum(post_id in waiting for post_id in drawn)
        if missing:
            raise DataError(
                f"{missing} of {len(drawn)} posts drawn for review wait for an answer: a sample that is half"
                " reviewed is no longer the one that was drawn. Finish the review (`selftrain review serve`)"
            )
        return outcome(ledger, batch)
    finally:
        ledger.close()


def _with_process(found: LabelledPosts, manifest: Path, sources: SourceSettings) -> LabelledPosts:
    """Lay the process answers of another manifest, with the usual fields, over those at hand."""
    read, left_out = read_posts(manifest, found.task, sources.model_copy(update={"columns": {}}))
    answers = {post.id: post for post in read}
    ids = {post.id for post in (*found.train, *found.validation)}
    if not ids & answers.keys():
        raise DataError(
            f"data.process: none of the {len(read):,} posts of {manifest} (ids {first_of(answers)}) is among"
            f" those to learn from or to validate on (ids {first_of(sorted(ids))}): name the manifest that"
            " has the answers about these posts, or leave it out"
        )

    def filled(post: Post) -> Post:
        """Return a post with the other's answers, each with what is said of the model that gave it."""
        other = answers.get(post.id)
        if other is None:
            return post
        own, given = answer_table(post, PROVENANCE), answer_table(other, PROVENANCE)
        told = {name: entry for name, entry in own.items() if name not in other.process}
        told |= {name: entry for name, entry in given.items() if name in other.process}
        extra = {name: value for name, value in post.extra.items() if name != PROVENANCE}
        extra |= {PROVENANCE: told} if told else {}
        return replace(post, process={**post.process, **other.process}, extra=extra)

    train, validation = ([*map(filled, posts)] for posts in (found.train, found.validation))
    return found._replace(train=train, validation=validation, quarantine=[*found.quarantine, *left_out])


# ---- manifests ------------------------------------------------------------------------------------------


def read_posts(path: Path, task: Task, sources: SourceSettings) -> tuple[list[Post], list[Json]]:
    """Read the posts of a manifest, and the rows set aside, as `read_rows`."""
    report = read_rows(path, task, sources)
    return list(report.posts), report.quarantine


def read_rows(path: Path, task: Task, sources: SourceSettings) -> ManifestReport:
    """Read a manifest whose albums may have any length; QuarantineError: more is set aside than tolerated."""
    report = read_manifest(
        path, task, max_pixels=sources.max_image_pixels, max_images=MAX_ALBUM, columns=sources.columns
    )
    report.enforce(sources.tolerance)
    return report


def has_splits(posts: Iterable[Post]) -> bool:
    """Return whether the manifest says of its posts what they are for."""
    return any("split" in post.extra for post in posts)


def of_split(posts: Sequence[Post], name: str | None) -> Sequence[Post]:
    """Return the posts of one split: what a model learned from is no measure of it.

    `name` is "train", "validation", "pool", "test" or "all"; None will do where the manifest has no splits.
    SplitError: there are splits and no name, no splits and a name, or no post of that name.
    """
    if not has_splits(posts):
        if name in (None, "all"):
            return posts
        raise SplitError(f"--split {name}: the manifest has no field `split`; leave the option out")
    columns = parts_by_column(posts).items()
    parts: dict[str, Sequence[Post]] = {
        "train" if kind == "labelled" else kind: part for kind, part in columns
    }
    found = parts | {"all": posts}
    if name is None or not found[name]:
        sizes = ", ".join(f"{len(part):,} {kind}" for kind, part in parts.items() if part)
        asked = "the manifest's field `split` says" if name is None else f"no post of split {name}: there are"
        raise SplitError(f"{asked} {sizes}; say which to measure, --split test for instance, or --split all")
    return found[name]

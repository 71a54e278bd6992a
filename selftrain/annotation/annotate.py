"""A manifest in, every question asked about every post, the manifest out with a report.

What is asked about which post, and what it would cost, is known before anything is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
from PIL.Image import Image

from agents.ask.answer_schema import AnswerForm
from agents.ask.metering import UsageTotals
from agents.ask.prepare import FrameReader
from agents.ask.questioner import (
    AgentQuestion,
    FailedQuestions,
    PostQuestions,
    QuestionAnswer,
    Questioner,
    QuestionPrompts,
)
from agents.client.base import Identity
from agents.errors import CallFailedError, RequestRefusedError, ServerRefusedError
from agents.judgment import PostLike
from backbones.images import MAX_PIXELS
from backbones.progress import ProgressBar
from selftrain._util.object_urls import url_or_path
from selftrain._util.plugins import accepted
from selftrain.agentps.frames import chosen, read_frames
from selftrain.annotation.answer_report import AnnotationReport, annotation_report
from selftrain.annotation.answers import FINAL, ModelAnswer, filled, known_answers, read_given
from selftrain.config import VlmSection, load_recipe
from selftrain.data.manifest import ManifestReport, Tolerance, read_manifest
from selftrain.data.manifest_writing import check_writable, write_manifest
from selftrain.data.model_answers import MISSING
from selftrain.data.posts import MAX_ALBUM, MAX_IMAGES, Post
from selftrain.data.task import Question, Task, load_task
from selftrain.engine.mapping import Engine
from selftrain.errors import RecipeError, TaskError
from selftrain.panels import ModelServers, brief_of
from selftrain.store.atomic import check_not_read, write_json
from selftrain.store.run_dir import read_jsonl

SAMPLE = 16
"""Posts whose prompts are measured."""
_BLOCK = 256  # posts that a worker is given at once


class AnnotationSettings(NamedTuple):
    """What an annotation takes from a recipe."""

    # servers, sampling, pictures, cost; its protocol and prompts are those of judges and not used
    vlm: VlmSection
    seed: int = 0  # of the model's draws
    tolerance: Tolerance = Tolerance()  # of rows set aside
    max_pixels: int = MAX_PIXELS  # the largest width x height that an image's header may claim
    columns: Mapping[str, str] = {}  # field -> column of the manifest, where that is called otherwise


def annotation_settings(
    recipe: Path | None = None,
    servers: Sequence[str] = (),
    token_cap: int | None = None,
    overrides: Sequence[str] = (),
) -> AnnotationSettings:
    """Return settings of a recipe, or the defaults, with other servers or another cap where these are given.

    RecipeError: a recipe that cannot be understood, or no server anywhere.
    """
    settings = AnnotationSettings(VlmSection())
    if recipe is not None:
        read = load_recipe(recipe, overrides)
        limits = read.data
        settings = AnnotationSettings(
            read.vlm, read.seed, Tolerance(limits.max_bad_rows, limits.max_bad_share),
            limits.max_image_pixels, limits.columns,
        )  # fmt: skip
    changed = {"servers": tuple(servers)} if servers else {}
    capped = {} if token_cap is None else {"token_cap": token_cap}
    section = settings.vlm.model_copy(update=changed | capped)
    if not section.servers:
        raise RecipeError(
            "no server to ask: start one with `selftrain agents serve MODEL` and give its URL with"
            " --server, for instance --server http://127.0.0.1:8000, or a recipe whose [vlm] names one"
        )
    return settings._replace(vlm=section)


# ---- which questions about which post -------------------------------------------------------------------


class PlannedPost(NamedTuple):
    """One post of the manifest."""

    post: Post  # as it was read
    asks: tuple[AgentQuestion, ...] = ()  # the questions that are asked about it
    unasked: Mapping[str, str] = {}  # question -> why it cannot be asked: no call is spent on it
    shown: tuple[Path, ...] = ()  # which of its pictures the model sees; of a video it sees frames

    @property
    def asking(self) -> PostQuestions:
        """What is asked, about what is shown."""
        return PostQuestions(replace(self.post, images=self.shown), self.asks, self.post.video)


def select_questions(task: Task, names: Sequence[str] | None) -> tuple[Question, ...]:
    """Return the task's questions of these names, in the task's order; TaskError: it has not all."""
    known = [question.name for question in task.questions]
    if not known:
        raise TaskError(
            f"the task {task.name!r} has no questions; expected one [[questions]] block or more: add them, or"
            " begin with a task of `selftrain data tasks`"
        )
    if FINAL in known:
        raise TaskError(f"a question is called {FINAL!r}, the name of the final question: rename it")
    if names is None:
        return task.questions
    strangers = sorted(set(names) - set(known))
    if strangers or not names:
        raise TaskError(
            f"the task {task.name!r} has no questions {strangers or 'of no name'}; it has {known}: choose"
            " among these, or leave the choice out to ask all"
        )
    return tuple(question for question in task.questions if question.name in names)


def plan_questions(
    posts: Sequence[Post],
    task: Task,
    questions: Sequence[Question],
    *,
    direct: bool = False,
    again: bool = False,
    limit: int | None = None,
    max_images: int = 16,
) -> list[PlannedPost]:
    """Plan what is asked about each post, in their order; with a `limit`, about the first ones alone.

    A question that a person has answered is asked too: the model's answer is what the report measures. One
    that a model has answered is not asked again. Raises as `known_answers`.
    """
    asked = [
        AgentQuestion(q.name, q.wording, q.answers, "choice" if q.counting is None else "count")
        for q in questions
    ]
    if direct:
        asked.append(AgentQuestion(FINAL, "", task.names, "final"))
    planned = []
    for place, post in enumerate(posts):
        asks, unasked = list[AgentQuestion](), dict[str, str]()
        earlier = {} if again else known_answers(post).model
        for one in asked if limit is None or place < limit else ():
            # an answer that the task no longer offers is none
            if earlier.get(one.name, {}).get("answer") in one.answers:
                continue
            if reason := _unaskable(one, post, max_images):
                unasked[one.name] = reason
            else:
                asks.append(one)
        shown = chosen(len(post.images), max_images, repeat=False)  # as AgentPS samples an album
        planned.append(PlannedPost(post, tuple(asks), unasked, tuple(post.images[place] for place in shown)))
    return planned


def _unaskable(question: AgentQuestion, post: Post, most: int) -> str:
    """Return why a question cannot be asked about a post; one that counts is about all its pictures."""
    images = len(post.images)
    if post.video is not None and not most:
        return "the post has a video, of which vlm.max_images = 0 shows nothing: raise it"
    if question.kind != "count":
        return ""
    if post.video is not None:
        return "the rule is about all pictures, and of a video only a sample is sent: ask without `counting`"
    if not images:
        return "the post has no pictures to count"
    if images > most:
        remedy = "raise vlm.max_images" if images <= MAX_IMAGES else "ask without `counting`"
        return f"only {most} of {images} pictures are sent, and the rule is about all: {remedy}"
    return ""


# ---- what it would cost --------------------------------------------------------------------------------


class AnnotationCost(NamedTuple):
    """The cost of an annotation, answers that are stored already not taken off."""

    posts: int  # about which something is asked
    calls: int  # questions about them
    unasked: int  # questions on which no call is spent
    # tokens of all prompts, and the part of their pictures; None where the server does not measure
    prompt: float | None
    image: float | None
    completion: int  # most tokens of the answers
    measured: int  # prompts measured
    fault: str = ""  # why the server does not measure; empty if it does

    def lines(self, cap: int | None = None) -> Iterator[str]:
        """Yield the cost, for people to read."""
        yield f"posts          {self.posts:,}"
        yield f"calls          {self.calls:,}"
        if self.unasked:
            yield f"not asked      {self.unasked:,} questions that cannot be: counts where not all is shown"
        if self.prompt is None or self.image is None:
            yield f"prompt tokens  not known: {self.fault}"
        else:
            yield (
                f"prompt tokens  {round(self.prompt):,}, of which pictures {round(self.image):,}"
                f" (by {self.measured:,} prompts measured)"
            )
        yield f"answer tokens  at most {self.completion:,}"
        yield "Answers that are in the store already cost nothing; those asked for again cost once more."
        if cap is not None and self.prompt is not None:
            enough = self.prompt + self.completion <= cap
            yield f"The token cap of {cap:,} {'is enough' if enough else 'may end the work early'}."


def estimate_cost(plan: Sequence[PlannedPost], questioner: Questioner, seed: int = 0) -> AnnotationCost:
    """Measure the prompts of a sample of posts, asking for no answer; AgentError: no server, or a refusal."""
    asking = [one.asking for one in plan if one.asks]
    calls = sum(len(one.questions) for one in asking)
    unasked = sum(len(one.unasked) for one in plan)
    completion = sum(questioner.most_tokens(one) for one in asking)
    if not asking:
        return AnnotationCost(0, 0, unasked, 0.0, 0.0, 0, 0)
    questioner.runner.identity()  # a server that is none is refused as such, not as one that does not measure
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(asking), size=min(SAMPLE, len(asking)), replace=False)
    fault = "no picture or video of the posts that were drawn could be read"
    try:
        sizes = questioner.measure([asking[i] for i in drawn])
    except (ServerRefusedError, RequestRefusedError, CallFailedError) as error:
        sizes, fault = [], str(error)
    if not sizes:
        return AnnotationCost(len(asking), calls, unasked, None, None, completion, 0, fault)
    prompt, image = (sum(size[part] for size in sizes) / len(sizes) * calls for part in (0, 1))
    return AnnotationCost(len(asking), calls, unasked, prompt, image, completion, len(sizes))


def build_questioner(
    settings: AnnotationSettings,
    task: Task,
    out: Path,
    *,
    prompts: Path | None = None,
    max_failed: float = 0.1,
    progress: bool = False,
) -> Questioner:
    """Build the questioner; nothing is asked yet.

    Answers are kept beside `out`, the manifest that will be written, and the token cap is its own. At most a
    share of `max_failed` may remain without a usable answer.
    """
    served = ModelServers(**accepted(ModelServers, dict(settings.vlm)))
    runner = served.runner(
        served.cache_beside(out), run=str(out.resolve()), max_pixels=settings.max_pixels,
        progress=progress, frames=_frame_reader(settings.max_pixels),
    )  # fmt: skip
    return Questioner(
        runner,
        QuestionPrompts(brief_of(task), folder=prompts, text_chars=served.text_chars),
        form=cast("AnswerForm", served.form or "reason_first"),
        rationale_chars=served.rationale_chars,
        seed=settings.seed,
        max_failed=max_failed,
    )


def _frame_reader(max_pixels: int) -> FrameReader:
    """Return what samples a video as AgentPS does; a frame keeps its proportions, as pictures do here."""

    def read(path: Path, count: int, side: int) -> list[Image]:
        def shrunk(image: Image) -> Image:
            image.thumbnail((side, side))
            return image

        return read_frames(path, count, max_pixels=max_pixels, fit=shrunk)

    return read


# ---- by the workers of a cluster -------------------------------------------------------------------------


class Asked(Protocol):
    """A `Questioner`, or many as one."""

    def ask(self, posts: Sequence[PostQuestions]) -> list[tuple[QuestionAnswer, ...]]:
        """See `Questioner.ask`."""
        ...

    def usage(self) -> UsageTotals:
        """Return what has been asked and paid so far."""
        ...

    def answered_by(self) -> Identity | None:
        """Return the model that was asked; None: nothing was."""
        ...


class QuestionerPool:
    """The questioners of an engine's workers, asked as one: the answers are those of one process.

    Workers share their answers in the database of the settings, which also keeps the token cap over all.

    Args:
        engine: Whose workers ask.
        build: Makes one worker's questioner, which itself tolerates any number of failed questions.
        max_failed: As of `build_questioner`, of all workers together.
        progress: Draw a bar over the posts.
    """

    def __init__(
        self, engine: Engine, build: Callable[[], Questioner], *, max_failed: float, progress: bool = False
    ) -> None:
        self._engine, self._build, self._max_failed = engine, build, max_failed
        self._progress = progress
        self._usage, self._model = UsageTotals(), cast("Identity | None", None)

    def ask(self, posts: Sequence[PostQuestions]) -> list[tuple[QuestionAnswer, ...]]:
        """See `Questioner.ask`; EngineError: as of the engine."""
        failures, answers = FailedQuestions(self._max_failed), list[tuple[QuestionAnswer, ...]]()
        # workers have folders of their own
        sent = [one._replace(post=_from_anywhere(one.post)) for one in posts]
        blocks = [sent[start : start + _BLOCK] for start in range(0, len(sent), _BLOCK)]
        with (
            ProgressBar(total=len(posts), disable=not self._progress, desc="posts") as bar,
            self._engine.map(partial(iter, blocks), partial(_asking, self._build)) as found,
        ):
            for block, done in zip(blocks, found, strict=True):
                self._usage, self._model = self._usage.plus(done.usage), done.model
                answers += done.answers
                for item, each in zip(block, done.answers, strict=True):
                    for answer in each:
                        failures.count(item.post.id, answer)
                bar.update(len(block))
        failures.check()
        return answers

    def usage(self) -> UsageTotals:
        """Return what the workers have asked and paid so far."""
        return self._usage

    def answered_by(self) -> Identity | None:
        """Return the model that was asked; None: nothing was."""
        return self._model


class _AskedBlock(NamedTuple):
    """What a worker gives back."""

    answers: list[tuple[QuestionAnswer, ...]]
    usage: UsageTotals
    model: Identity | None


def _asking(build: Callable[[], Questioner]) -> Callable[[Sequence[PostQuestions]], _AskedBlock]:
    """Make a questioner, and return what asks it about posts: a `Stage` of the engines."""
    questioner = build()

    def ask(block: Sequence[PostQuestions]) -> _AskedBlock:
        before = questioner.usage()
        answers = questioner.ask(block)
        return _AskedBlock(answers, questioner.usage().minus(before), questioner.answered_by())

    return ask


def _from_anywhere(post: PostLike) -> PostLike:
    return (
        replace(post, images=tuple(one.absolute() for one in post.images)) if isinstance(post, Post) else post
    )


# ---- the whole of it ------------------------------------------------------------------------------------


class PreparedAnnotation(NamedTuple):
    """Everything that can be known, and refused, before a model is asked."""

    task_file: Path  # of `task`
    task: Task
    questions: tuple[Question, ...]  # to be asked
    direct: bool  # whether the final question is asked too
    manifest: ManifestReport  # as it was read, with the rows that are left out
    plan: tuple[PlannedPost, ...]  # one entry a post
    out: Path  # the manifest that will be written


class AnnotatedManifest(NamedTuple):
    """What was written, and what it cost."""

    out: Path
    report_file: Path
    report: AnnotationReport
    usage: UsageTotals


def prepare_annotation(
    manifest: Path,
    task: Path,
    out: Path,
    settings: AnnotationSettings,
    *,
    questions: Sequence[str] | None = None,
    direct: bool = False,
    again: bool = False,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> PreparedAnnotation:
    """Read and check everything; nothing is asked and nothing written.

    TaskError, ManifestError, QuarantineError, StorageError: what cannot be used, and what to do.
    """
    read_task = load_task(task)
    selected = select_questions(read_task, questions)
    check_not_read(out, manifest, task)
    found = read_manifest(
        manifest, read_task, max_pixels=settings.max_pixels, max_images=MAX_ALBUM,
        columns={**settings.columns, **(columns or {})},
    )  # fmt: skip
    found.enforce(settings.tolerance)
    check_writable(found.posts, out)
    planned = plan_questions(
        found.posts, read_task, selected,
        direct=direct, again=again, limit=limit, max_images=settings.vlm.max_images,
    )  # fmt: skip
    return PreparedAnnotation(task, read_task, selected, direct, found, tuple(planned), out)


def annotate(prepared: PreparedAnnotation, questioner: Asked) -> AnnotatedManifest:
    """Ask everything that is planned, then write the manifest and the report.

    Nothing is written before the last answer is there; killed before, the same call finds what was paid for
    in the store. Raises as `Questioner.ask`.
    """
    asking = [one for one in prepared.plan if one.asks]
    posts = answer_questions(prepared.plan, prepared.questions, questioner)
    report = annotation_report(posts, prepared.task, prepared.questions, prepared.direct)
    usage, identity, out = questioner.usage(), questioner.answered_by(), prepared.out
    record = {
        "manifest": url_or_path(prepared.manifest.path),
        "task": str(prepared.task_file),
        "written": str(out),
        "model": None if identity is None else identity._asdict(),
        "asked": {"posts": len(asking), "questions": sum(len(one.asks) for one in asking)},
        "usage": usage.to_json(),
        **report.to_json(),
        "set_aside": [problem._asdict() for problem in prepared.manifest.problems],
    }
    report_file = out.with_name(f"{out.name}.report.json")
    write_manifest(posts, out)
    write_json(report_file, record)
    return AnnotatedManifest(out, report_file, report, usage)


def answer_questions(
    plan: Sequence[PlannedPost], questions: Sequence[Question], questioner: Asked
) -> list[Post]:
    """Ask everything that is planned; return the posts with what was answered. Raises as `Questioner.ask`."""
    asking = [one for one in plan if one.asks]
    came = questioner.ask([one.asking for one in asking])
    given = {one.post.id: each for one, each in zip(asking, came, strict=True)}
    asked = {question.name: question for question in questions}
    posts = []
    for one in plan:
        answers: dict[str, ModelAnswer | str] = dict(one.unasked)
        for each in given.get(one.post.id, ()):
            answers[each.question] = read_given(each, asked.get(each.question), len(one.post.images))
        posts.append(filled(one.post, answers))
    return posts


def is_answered(plan: Sequence[PlannedPost], file: Path) -> bool:
    """Return whether a file says of all that is asked what came of it, an answer or why there is none."""
    if not file.exists():
        return False
    told = {row["id"]: {*row.get("process", ()), *row.get(MISSING, ())} for row in read_jsonl(file)}
    return all(ask.name in told.get(one.post.id, ()) for one in plan for ask in one.asks)

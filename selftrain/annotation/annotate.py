"""The whole of it: a manifest in, every question asked about every post, the manifest out with a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from agents.ask.metering import UsageTotals
from agents.ask.questioner import PostQuestions, Questioner
from agents.ask.runner import DEFAULT
from selftrain.annotation.answer_report import AnnotationReport, annotation_report
from selftrain.annotation.answers import ModelAnswer, filled, read_given
from selftrain.annotation.question_plan import (
    AnnotationSettings,
    PlannedPost,
    plan_questions,
    select_questions,
)
from selftrain.data.manifest import ManifestReport, read_manifest
from selftrain.data.manifest_writing import check_writable, write_manifest
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task, load_task
from selftrain.errors import ManifestError
from selftrain.store.atomic import write_json


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

    Raises:
        TaskError, ManifestError, QuarantineError: What cannot be used, and what to do.
    """
    read_task = load_task(task)
    chosen = select_questions(read_task, questions)
    for given, what in ((manifest, "the manifest that is read"), (task, "the task")):
        if out.resolve() == given.resolve() or (out.exists() and given.exists() and out.samefile(given)):
            raise ManifestError(f"{out} is {what}; expected another file to write to: name one")
    found = read_manifest(manifest, read_task, max_pixels=settings.max_pixels, columns=columns)
    found.enforce(settings.tolerance)
    check_writable(found.posts, out)
    planned = plan_questions(
        found.posts, read_task, chosen,
        direct=direct, again=again, limit=limit, max_images=settings.vlm.max_images,
    )  # fmt: skip
    return PreparedAnnotation(task, read_task, chosen, direct, found, tuple(planned), out)


def annotate(prepared: PreparedAnnotation, questioner: Questioner) -> AnnotatedManifest:
    """Ask everything that is planned, then write the manifest and the report.

    Nothing is written before the last answer is there; killed before, the same call finds what was paid for
    in the store. Raises as `Questioner.ask`.
    """
    asking = [one for one in prepared.plan if one.asks]
    posts = answer_questions(prepared.plan, prepared.questions, questioner)
    report = annotation_report(posts, prepared.task, prepared.questions, prepared.direct)
    usage, identity, out = questioner.runner.usage(), questioner.runner.reached().get(DEFAULT), prepared.out
    record = {
        "manifest": str(prepared.manifest.path),
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
    plan: Sequence[PlannedPost], questions: Sequence[Question], questioner: Questioner
) -> list[Post]:
    """Ask everything that is planned; return the posts with what was answered. Raises as `Questioner.ask`."""
    asking = [one for one in plan if one.asks]
    came = questioner.ask([PostQuestions(one.post, one.asks) for one in asking])
    given = {one.post.id: each for one, each in zip(asking, came, strict=True)}
    asked = {question.name: question for question in questions}
    posts = []
    for one in plan:
        answers: dict[str, ModelAnswer | str] = dict(one.unasked)
        for each in given.get(one.post.id, ()):
            answers[each.question] = read_given(each, asked.get(each.question), len(one.post.images))
        posts.append(filled(one.post, answers))
    return posts

"""One way to ask: in order, within a width, from a notebook too, and answers paid for earlier stay valid."""

from __future__ import annotations

import asyncio

import pytest
from vlm_helpers import BRIEF, IDENTITY, MemoryBackend, PostStub, by_first_word, opener, raw, said

from agents.ask.annotator import Annotation, AnnotationPrompts, Annotator
from agents.ask.answer_schema import AnswerSchema, ParsedAnswer, parse_answer
from agents.ask.cache import ResponseCache
from agents.ask.criticizer import Criticizer
from agents.ask.judge import JudgePrompts, VLMAgent
from agents.ask.metering import PostPrompt
from agents.ask.protocols import PROTOCOLS, Query
from agents.ask.questioner import AgentQuestion, PostQuestions, Questioner, QuestionPrompts
from agents.ask.runner import Runner
from agents.client.base import Message, cache_key

SCHEMA = AnswerSchema(("rude", "kind"), "unsure")
POST = PostStub("p0", "rude words <b> here")
KEYS = ["7c5e526c12b1dbac", "3351cad67e74bb02", "52bd87ee3b972960", "124138e7e66bf222"]


@pytest.fixture
def running(tmp_path):
    made = []

    def make(answer=by_first_word, **options):
        cache = ResponseCache(tmp_path / "answers.sqlite")
        backend = MemoryBackend(answer)
        made.append(Runner(backend, cache, run="run-1", opener=opener, **options))
        return made[-1], backend

    yield make
    for runner in made:
        runner.close()
        runner.cache.close()


def ask_about(runner):
    """The work on one post: a single prompt that quotes it."""

    async def work(post):
        prepared = await runner.prepare(post)
        asked = Message("user", (f"> {post.text}",))
        return await runner.ask(PostPrompt(prepared, (asked,), SCHEMA, "judge"))

    return work


def posts(count):
    return [PostStub(f"p{i}", f"{('rude', 'kind')[i % 2]} post {i}") for i in range(count)]


def test_results_come_in_the_order_of_the_posts(running):
    runner, backend = running(width=4)
    found = runner.map("posts", posts(30), ask_about(runner))
    assert [one.answer.label for one in found] == ["rude", "kind"] * 15
    assert backend.most_at_once == 4
    assert {one.source for one in found} == {"vlm:model-a@rev1"}


def test_a_notebook_with_a_running_loop_can_ask(running):
    runner, _ = running()

    async def cell():
        return runner.map("posts", posts(3), ask_about(runner))

    assert len(asyncio.run(cell())) == 3


def test_progress_is_shown_after_every_post(running):
    shown = []
    runner, _ = running(progress=lambda what, total: lambda usage: shown.append((what, total, usage.calls)))
    runner.map("posts", posts(3), ask_about(runner))
    assert [one[:2] for one in shown] == [("posts", 3)] * 3
    assert shown[-1][2] == 3


def test_a_runner_works_again_after_an_error_of_the_work(running):
    runner, backend = running(width=1)

    async def failing(post):
        raise ValueError(post.id)

    with pytest.raises(ValueError, match="p0"):
        runner.map("posts", posts(5), failing)
    assert len(runner.map("posts", posts(5), ask_about(runner))) == 5
    assert backend.opened == 1


def test_an_answer_survives_its_record():
    for completion in (said("rude", 0.7), said("unsure"), raw("no JSON")):
        answer = parse_answer(completion, SCHEMA)
        assert ParsedAnswer.from_json(answer.to_json()) == answer


def test_records_of_judges_that_know_no_perplexity_are_read():
    record = parse_answer(said("rude", 0.7), SCHEMA).to_json()
    del record["perplexity"]
    assert ParsedAnswer.from_json(record).label == "rude"


def test_answers_that_were_paid_for_are_found_again(running):
    """The keys of prompts of every kind, pinned: where one changes, users pay for their answers once more."""
    runner, backend = running(lambda request: raw("x"), attempts=1)
    agent = VLMAgent(JudgePrompts(BRIEF), PROTOCOLS["cross_review"], seed=3)

    async def judge(post):
        prepared = await runner.prepare(post)
        return await runner.ask(agent.prompt(prepared, Query("reviewer", 0, "reviewer.first")))

    runner.map("judge", [POST], judge)
    prompts = AnnotationPrompts(BRIEF)
    Annotator(prompts, seed=3).annotate(runner, [POST])
    machine = Annotation("p0", "rude", 0.9, "It calls <x>.", None, "", "vlm")
    Criticizer(prompts, seed=3).criticize(runner, [POST], [machine])
    question = AgentQuestion("fits", "Do they fit?", ("yes", "no"))
    Questioner(runner, QuestionPrompts(BRIEF), seed=3).ask([PostQuestions(POST, (question,))])
    assert [cache_key(request, IDENTITY)[:16] for request in backend.requests] == KEYS

"""One way to ask: in order, within a width, from a notebook too, and answers paid for earlier stay valid."""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
from contextlib import closing

import pytest
from PIL import Image
from vlm_helpers import BRIEF, IDENTITY, MemoryBackend, PostStub, by_first_word, opener, raw, said

from agents.ask.annotator import Annotation, AnnotationPrompts, Annotator
from agents.ask.answer_schema import AnswerSchema, ParsedAnswer, parse_answer
from agents.ask.cache import CachedAnswer, Note, ResponseCache, kept_row
from agents.ask.criticizer import Criticizer
from agents.ask.judge import JudgePrompts, VLMAgent
from agents.ask.metering import Manner, PostPrompt, StoppedError
from agents.ask.protocols import PROTOCOLS, Query
from agents.ask.questioner import AgentQuestion, PostQuestions, Questioner, QuestionPrompts
from agents.ask.runner import Runner
from agents.client.base import Message, Usage, cache_keys
from agents.errors import StoreError

SCHEMA = AnswerSchema(("rude", "kind"), "unsure")
POST = PostStub("p0", "rude words <b> here")
KEYS = ["b53274e33f8f2e16", "5345ed1f9dbdd38f", "6e8d0baafff025f3", "cc6d64408d815ba3"]
WITH_PICTURES = ["9a292263b2e32fb7", "dce35001a589fc49"]  # of a choice and of a count


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


def test_posts_are_taken_up_as_their_number_allows_at_the_moment(running):
    allowed, seen = [2], []
    runner, backend = running(worth=lambda: allowed[0])
    asking = ask_about(runner)

    async def work(post):
        if post.id in ("p10", "p40"):
            seen.append(backend.most_at_once)
            backend.most_at_once, allowed[0] = 0, {"p10": 6, "p40": 1}[post.id]
        if post.id == "p59":
            seen.append(backend.under_way)
        return await asking(post)

    assert len(runner.map("posts", posts(60), work)) == 60
    assert seen == [2, 6, 0]


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
    for completion in (said("rude", 0.7), said("unsure", 0.4), said("kind", reasoning="hm")):
        answer = parse_answer(completion, SCHEMA)
        assert ParsedAnswer.from_json(json.loads(json.dumps(answer.to_json())), SCHEMA) == answer


@pytest.mark.parametrize(
    "change",
    [
        {"label": "evil"},
        {"label": None},
        {"state": "failed"},
        {"rationale": "half \ud83d"},
        {"probabilities": {"rude": math.nan, "kind": 0.5}},
        {"probabilities": {"rude": 1.5, "kind": 0.5}},
        {"probabilities": {"kind": 1.0}},
        {"perplexity": math.inf},
        {"perplexity": 0.9},
    ],
)
def test_what_was_stored_is_checked_and_bought_again_where_it_fails(running, change):
    (post,) = posts(1)
    runner, _ = running()
    runner.map("posts", [post], ask_about(runner))
    kept = parse_answer(said("rude"), SCHEMA).to_json() | change
    stored = runner.cache.path
    with closing(sqlite3.connect(stored)) as file, file:
        (key,) = file.execute("SELECT cache_key FROM responses").fetchone()
        file.execute("DELETE FROM responses")
    note = Note("run-1", "p0", "judge", 0, "model-a")
    answer = CachedAnswer(kept, "text", "stop", Usage(100, 0, 0, 20), 0.5)
    runner.cache.write([kept_row(key, answer, note)])
    again, asked = running()
    (found,) = again.map("posts", [post], ask_about(again))
    assert (found.answer.label, len(asked.requests)) == ("rude", 1)
    assert again.cache.spent("run-1").total == 240  # what it cost stays counted


@pytest.mark.parametrize("seed", [0, 3])
def test_answers_that_were_paid_for_are_found_again(running, seed):
    """The keys of prompts of every kind, pinned: where one changes, users pay for their answers once more.

    A run of another seed is given them too: nothing is drawn in a first answer.
    """
    runner, backend = running(lambda request: raw("x"), manner=Manner(attempts=1))
    agent = VLMAgent(JudgePrompts(BRIEF), PROTOCOLS["cross_review"], seed=seed)

    async def judge(post):
        prepared = await runner.prepare(post)
        return await runner.ask(agent.prompt(prepared, Query("reviewer", 0, "reviewer.first")))

    runner.map("judge", [POST], judge)
    prompts = AnnotationPrompts(BRIEF)
    Annotator(prompts, seed=seed).annotate(runner, [POST])
    machine = Annotation("p0", "rude", 0.9, "It calls <x>.", None, "", "vlm")
    Criticizer(prompts, seed=seed).criticize(runner, [POST], [machine])
    question = AgentQuestion("fits", "Do they fit?", ("yes", "no"))
    Questioner(runner, QuestionPrompts(BRIEF), seed=seed).ask([PostQuestions(POST, (question,))])
    assert [key[:16] for one in backend.requests for key in cache_keys([one], IDENTITY)] == KEYS


def test_answers_about_pictures_that_were_paid_for_are_found_again(tmp_path, running):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"picture %d" % i)
    runner, backend = running(lambda request: raw("x"), manner=Manner(attempts=1), max_images=2)
    runner._pictures._opener = lambda path, side: Image.new("RGB", (8, 8))
    post = PostStub("p0", "rude words <b> here", tuple(tmp_path / f"{i}.png" for i in range(3)))
    answers = ("yes", "no")
    asked = (AgentQuestion("fits", "Do they fit?", answers), AgentQuestion("m", "Marks?", answers, "count"))
    Questioner(runner, QuestionPrompts(BRIEF)).ask([PostQuestions(post, asked)])
    found = [key[:16] for one in backend.requests for key in cache_keys([one], IDENTITY)]
    assert found == WITH_PICTURES


def test_a_picture_is_decoded_when_it_is_first_sent_once_and_not_where_its_answer_is_there(tmp_path):
    opened = []

    def counting(path, side):
        opened.append(path)
        return opener(path, side)

    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    post = PostStub("p0", "rude words", (tmp_path / "a.png",))

    def judged(text):
        async def work(post):
            prepared = await runner.prepare(post)
            asked = Message("user", (f"> {text}", *prepared.pictures))
            return await runner.ask(PostPrompt(prepared, (asked,), SCHEMA, "judge"))

        return work

    cache = ResponseCache(tmp_path / "answers.sqlite")
    for expected in (1, 0):
        opened.clear()
        backend = MemoryBackend(by_first_word)
        runner = Runner(backend, cache, run="r", opener=counting)
        for text in ("rude", "kind"):
            (response,) = runner.map("posts", [post], judged(text))
            assert response.answer.label == text
        assert (len(opened), len(backend.requests)) == (expected, 2 * expected)
        runner.close()
    (tmp_path / "a.png").write_bytes(b"no picture")
    runner = Runner(MemoryBackend(by_first_word), cache, run="r", opener=counting)
    (response,) = runner.map("posts", [post], judged("rude"))
    assert response.fault.startswith("A picture of this post could not be read")
    runner.close()
    cache.close()


def test_why_the_work_ends_is_told_and_not_merely_that_it_does(running):
    """A disk that is full under one of two calls on a post ends the other one, which stands before it."""
    runner, _ = running()

    async def ask(prompt):
        raise StoreError("the disk is full") if prompt == "second" else StoppedError

    runner.ask = ask

    async def work(post):
        return await runner.ask_together(["first", "second"])

    with pytest.raises(StoreError, match="the disk is full"):
        runner.map("posts", posts(1), work)

"""Every attempt of the bench stays in its place: no special string, no picture too many, no line unquoted."""

from __future__ import annotations

import asyncio
import json

import pytest
from test_vlm_words import SPECIAL
from vlm_helpers import BRIEF, PostStub, make_panel, opener, pictures_of, words

from agents.ask.judge import JudgePrompts, VLMAgent
from agents.ask.prepare import prepare_post
from agents.ask.protocols import PROTOCOLS, all_queries
from agents.judgment import Judgment, State
from runs.bench.agents_injections import Said, attacked, attempts, control, shares, trials
from runs.bench.agents_judge import seen_by_nobody
from runs.bench.agents_turned import Kept, turned_to
from selftrain.data.posts import Post

ALL = attempts()
CLEAN = PostStub("p1", "an ordinary post")


def requests(post, said="it quotes a song"):
    """All requests of a cross-review about `post`, in which agents say `said`."""
    protocol = PROTOCOLS["cross_review"]
    agent = VLMAgent(JudgePrompts(BRIEF), protocol)
    seen = asyncio.run(prepare_post(post, opener, side=768, most=16))
    assert not seen.fault
    stand_in = Judgment("reviewer", 0, State.LABEL, "rude", None, said, "test")
    first, review = all_queries(protocol, stand_in, "kind")
    return [agent.prompt(seen, query).request() for query in (*first, *review)]


def test_there_are_forty_attempts_and_more_with_names_of_their_own():
    assert len(ALL) >= 40
    assert len({attempt.name for attempt in ALL}) == len(ALL)
    assert {attempt.where for attempt in ALL} == {"text", "image", "id", "file_name"}
    assert all("{target}" in attempt.text for attempt in ALL)


@pytest.mark.parametrize("attempt", ALL, ids=[attempt.name for attempt in ALL])
def test_an_attempt_stays_in_its_place(attempt, tmp_path):
    post = attacked(Post("p1", "an ordinary post"), attempt, "kind", tmp_path)
    for request, clean in zip(requests(post), requests(CLEAN), strict=True):
        shown = [words(request, i) for i in range(len(request.messages))]
        assert not [special for special in SPECIAL if any(special in text for text in shown)]
        assert [m.role for m in request.messages] == [m.role for m in clean.messages]
        # the system prompt and the question are those of the clean post, to the letter
        assert request.messages[0] == clean.messages[0]
        assert request.messages[-1].parts[-1] == clean.messages[-1].parts[-1]
        assert len(pictures_of(request)) == (attempt.where in ("image", "file_name"))
        first, *quotation = request.messages[-1].parts[0].rstrip("\n").split("\n")
        assert first.startswith("The post has words and ")
        assert quotation
        assert all(line.startswith("> ") for line in quotation)
        if attempt.where in ("id", "file_name"):
            assert attempt.text.format(target="kind") not in json.dumps(request.to_json())


@pytest.mark.parametrize("attempt", [a for a in ALL if a.where == "text"], ids=lambda a: a.name)
def test_an_attempt_in_another_agent_s_words_stays_in_its_place(attempt):
    said = attempt.text.format(target="kind")
    for request, clean in zip(requests(CLEAN, said), requests(CLEAN), strict=True):
        ending, plain = request.messages[-1].parts[-1], clean.messages[-1].parts[-1]
        assert not [special for special in SPECIAL if special in ending]
        outside = [line for line in ending.split("\n") if not line.startswith("> ")]
        assert outside == [line for line in plain.split("\n") if not line.startswith("> ")]


@pytest.mark.parametrize("attempt", ALL, ids=[attempt.name for attempt in ALL])
def test_a_control_asks_for_nothing_and_is_as_long(attempt, tmp_path):
    base = Post("p1", "an ordinary post")
    hostile = attacked(base, attempt, "kind", tmp_path / "a")
    harmless = control(base, attempt, tmp_path / "b")
    assert "kind" not in harmless.text + harmless.id + "".join(path.name for path in harmless.images)
    assert len(hostile.images) == len(harmless.images)
    if attempt.where == "text":
        assert len(harmless.text) == len(base.text) + 1 + len(attempt.text)


def leans(*labels):
    """Judgments of an agent that gives no label and leans to these; None: it gives no answer."""
    return [
        Judgment("reviewer", 0, State.ABSTAIN, None, None, "", "test", {"uncalibrated": {name: 0.9}})
        if name
        else Judgment("reviewer", 0, State.FAILED, None, None, "", "test")
        for name in labels
    ]


def test_a_flip_is_unseen_where_both_agents_and_the_posterior_go_along(tmp_path):
    posts = [Post(f"p{i}", "an ordinary post", (), "kind" if i == 1 else "rude") for i in range(5)]
    base = leans("rude", "rude", "rude", None, "kind")
    made = trials(posts, base, ("rude", "kind"), tmp_path, pictures=False)
    assert [one.target for one in made] == ["kind", "kind", "kind", "rude"]
    assert len({post.id for one in made for post in (one.hostile, one.harmless)}) == 8
    assert all(one.where in ("text", "id") for one in made)
    kind, rude = leans("kind", "kind", "kind", "rude"), leans("rude", "rude", "rude", "kind")
    said = Said({"reviewer": kind, "user": [*kind[:2], rude[2], kind[3]]}, {"reviewer": rude, "user": kind})
    found = shares(made, said)
    assert (found["flip_rate"], found["flip_rate_both"]) == (1.0, 0.75)
    assert (found["control_flip_rate"], found["control_flip_rate_both"]) == (0.0, 0.0)
    # the posterior follows the first two and the last; of the second the class asked for is the right one
    probs = {post.id: (0.8, 0.2) for one in made for post in (one.hostile, one.harmless)}
    probs |= {made[place].hostile.id: (0.2, 0.8) for place in (0, 1)}
    found = seen_by_nobody(made, said, probs, ("rude", "kind"))
    assert found["flip_rate_posterior"] == found["flip_rate_unseen"] == 0.75
    assert found["flip_rate_unseen_and_wrong"] == 0.25
    assert found["control_flip_rate_unseen"] == 0.0


def test_kept_answers_say_what_they_are_made_to_say(tmp_path):
    honest = {"rude": 0.2, "kind": 0.8}
    turned = turned_to(honest, "rude", 0.95)
    assert turned == {"rude": 0.95, "kind": pytest.approx(0.05)}
    assert turned_to(honest, "rude", None) == honest
    table = {("p1", "reviewer"): turned, ("p1", "user"): honest}
    panel = make_panel(Kept(table), tmp_path, "independent", asking={"form": "label_only"})
    said = panel.predict_out_of_fold([Post("p1", "an ordinary post", (), "rude")])
    panel.close()
    for role, (judgment,) in said.items():
        assert judgment.state is State.ABSTAIN
        assert judgment.details["uncalibrated"] == pytest.approx(table["p1", role])

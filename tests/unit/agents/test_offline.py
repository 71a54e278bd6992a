from __future__ import annotations

import json

import numpy as np
import pytest
from agents_helpers import FLOWERS, METALS, Post, make_posts

from agents.errors import LearningError, NotFittedError
from agents.judgment import Accepted, Candidate, Judgment, State
from agents.offline import offline_agent
from agents.offline.offline_agent import OfflineAgent, offline_agents
from agents.offline.text_model import CharacterNgrams, WordNgrams
from agents.offline.views import ImageView, TextView
from agents.panel import CrossReview
from agents.trust import trust

CLASSES = ("metal", "flower")
HOSTILE = {
    "empty": "",
    "spaces": " \n\t ",
    "emoji": "\U0001f339\U0001f339\u2764\ufe0f",
    "long": "iron " * 20_000,
    "one long word": "a" * 100_000,
    "nul": "rose\0tulip\0",
    "right to left": "\u202e\u05d5\u05b6\u05e8\u05b6\u05d3 rose",
    "surrogate": "rose \ud800",
    "entities": "&amp;amp;lt;rose&gt; &#0; &#x110000;",
    "unspaced": "\u8594\u8587\u306e\u82b1\u5712" * 30,
}


@pytest.fixture(scope="module")
def posts():
    return make_posts(60, 0), make_posts(200, 1, "pool")


@pytest.fixture(scope="module")
def panel(posts):
    panel = CrossReview(*offline_agents(CLASSES))
    panel.fit(posts[0], pool=posts[1])
    return panel


def candidates(pool, flip=()):
    return [
        Candidate(p, ("metal", "flower")[(p.label == "flower") ^ (i in flip)], 0.9)
        for i, p in enumerate(pool)
    ]


def test_verdicts_separate_right_candidates_from_wrong_ones(panel, posts):
    flipped = set(range(0, 200, 5)) | set(range(1, 200, 10))
    verdicts = panel.verify(candidates(posts[1], flipped))
    consistent = np.array([verdict.consistent for verdict in verdicts])
    right = np.array([i not in flipped for i in range(200)])
    assert consistent[right].mean() > 0.95
    assert consistent[~right].mean() < 0.05
    assert all(len(v.judgments) == 4 for v, fine in zip(verdicts, right, strict=True) if not fine)


def test_same_seed_same_bytes_whatever_was_learned_before(posts):
    lines = []
    for detour in (False, True):
        panel = CrossReview(*offline_agents(CLASSES, seed=7))
        panel.fit(posts[0], pool=posts[1])
        if detour:
            panel.fit(posts[0], accepted=[Accepted(p, str(p.label)) for p in posts[1][:50]], pool=posts[1])
            panel.fit(posts[0], pool=posts[1])
        verdicts = panel.verify(candidates(posts[1][:50], {3, 4}))
        lines.append([json.dumps(verdict.to_json()) for verdict in verdicts])
    assert lines[0] == lines[1]


def test_of_a_large_pool_evenly_drawn_posts_teach(posts, monkeypatch):
    """As if no others were there: memory does not grow with the pool."""
    labelled, pool = posts
    monkeypatch.setattr(offline_agent, "MOST_OF_POOL", 70)
    read = [f"word{i} {post.text}" for i, post in enumerate(pool)]
    large, small = (CrossReview(*offline_agents(CLASSES)) for _ in range(2))
    large.fit(labelled, pool=[Post(str(i), text) for i, text in enumerate(read)])
    small.fit(labelled, pool=[Post(str(i), text) for i, text in enumerate(read) if i % 3 == 0])
    asked = [Post(f"new{i}", text) for i, text in enumerate(read[:12])]
    for role in ("reviewer", "user"):
        assert large.predict_out_of_fold(asked)[role] == small.predict_out_of_fold(asked)[role]


def test_a_judgment_does_not_depend_on_the_batch(panel, posts):
    agent = panel._agents[0]
    alone = [agent.judge([post])[0].to_json() for post in posts[1][:5]]
    assert [judgment.to_json() for judgment in agent.judge(posts[1][:5])] == alone


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_judged_or_abstained_from(panel, name):
    post = Post(name, HOSTILE[name])
    (verdict,) = panel.verify([Candidate(post, "flower", 0.9)])
    assert {judgment.state for judgment in verdict.judgments} <= {State.LABEL, State.ABSTAIN}
    json.dumps(verdict.to_json(), allow_nan=False)
    expected = {"empty": None, "spaces": None, "long": "metal", "nul": "flower", "surrogate": "flower"}
    if name in expected:
        assert [judgment.label for judgment in verdict.judgments[:2]] == [expected[name]] * 2


def test_hostile_texts_can_be_learned_from(posts):
    odd = [Post(f"odd {name}", text, label="flower") for name, text in HOSTILE.items()]
    panel = CrossReview(*offline_agents(CLASSES))
    panel.fit([*posts[0], *odd], pool=posts[1])
    assert sum(verdict.consistent for verdict in panel.verify(candidates(posts[1][:40]))) > 30


def test_an_agent_that_knows_nothing_does_not_echo_the_others(panel):
    agent = panel._agents[0]
    post = Post("x", "qqqqq")
    (own,) = agent.judge([post])
    assert own.state is State.ABSTAIN
    other = Judgment("user", 0, State.LABEL, "flower", 0.99, "", "test")
    (again,) = agent.reconsider([Candidate(post, "flower", 0.99)], [own], [other])
    assert again.state is State.ABSTAIN
    assert "know nothing" in again.rationale


def test_one_class_is_refused_with_figures(posts):
    flowers = [post for post in posts[0] if post.label == "flower"]
    for agent in offline_agents(CLASSES):
        with pytest.raises(LearningError, match=r"'metal': 0, 'flower': 30"):
            agent.fit(flowers)
        with pytest.raises(LearningError, match=r"'metal': 0, 'flower': 0"):
            agent.fit([])


@pytest.mark.parametrize("label", ["weed", None])
def test_a_label_that_is_no_class_is_refused(posts, label):
    with pytest.raises(LearningError, match=str(label)):
        offline_agents(CLASSES)[0].fit([*posts[0], Post("odd", "rose", label=label)])


@pytest.mark.parametrize("change", [{"target": 0.0}, {"target": 1.1}, {"weight": 0.0}])
def test_an_accepted_post_without_weight_is_refused(posts, change):
    with pytest.raises(LearningError, match="'odd'"):
        offline_agents(CLASSES)[0].fit(posts[0], accepted=[Accepted(Post("odd"), "metal", **change)])


@pytest.mark.parametrize("classes", [["one"], ["same", "same"]])
def test_two_different_classes_are_needed(classes):
    with pytest.raises(LearningError, match="two or more"):
        offline_agents(classes)


def test_judging_before_learning_is_refused(posts):
    for agent in offline_agents(CLASSES):
        with pytest.raises(NotFittedError):
            agent.judge(posts[1])
        with pytest.raises(NotFittedError):
            agent.predict_out_of_fold(posts[0])


def test_accepted_posts_teach_and_their_target_and_weight_count(posts):
    new = [Post(f"n{i}", f"zebra savanna number{i}") for i in range(8)]
    asked = [Post("asked", "zebra savanna")]
    odds = {}
    for name, change in {"full": {}, "soft": {"target": 0.67}, "light": {"weight": 0.1}}.items():
        agent = offline_agents(CLASSES)[0]
        agent.fit(posts[0], accepted=[Accepted(p, "metal", **change) for p in new], pool=posts[1] + asked)
        found = agent.judge(asked)[0].details["log_odds"]
        odds[name] = found["metal"] - found["flower"]
    assert odds["full"] > odds["soft"] > 0
    assert odds["full"] > odds["light"] > 0


def test_rationale_names_words_and_posts_that_are_there(panel, posts):
    post = posts[1][0]
    for judgment in (agent.judge([post])[0] for agent in panel._agents):
        words = judgment.details["words"]
        assert {word["word"] for word in words} <= set(post.text.split())
        assert any(word["word"] in FLOWERS and word["weight"] > 0 for word in words)
        near = judgment.details["nearest"][0]
        assert near["id"] in {p.id for p in posts[0]}
        assert near["label"] == next(p.label for p in posts[0] if p.id == near["id"])
        assert 0 < near["similarity"] <= 1
        assert f"'{words[0]['word']}'" in judgment.rationale
        assert near["id"] in judgment.rationale


def reviewer(**shares):
    """The Reviewer of texts, with other shares than `offline_agents` gives it."""
    return OfflineAgent("reviewer", [TextView(WordNgrams(), temper=1.0)], CLASSES, **shares)


def test_reconsidering_says_what_moved_it(posts):
    agent = reviewer(margin=0.0, weight_other=1.0, weight_classifier=1.0)
    agent.fit(posts[0], pool=posts[1])
    post = Post("x", "rose iron")
    (own,) = agent.judge([post])
    against = "metal" if own.label == "flower" else "flower"
    other = Judgment("user", 0, State.LABEL, against, 0.95, "", "test")
    strong = [Candidate(post, against, 0.99)]
    (moved,) = agent.reconsider(strong, [own], [other])
    assert moved.label == against
    assert moved.rationale.startswith(f"Changes from {own.label} to {against}")
    agent = reviewer(margin=0.0, weight_other=0.0, weight_classifier=0.0)
    agent.fit(posts[0], pool=posts[1])
    (stayed,) = agent.reconsider(strong, [own], [other])
    assert stayed.label == own.label
    assert stayed.rationale.startswith(f"Stays with {own.label}")


def test_a_margin_turns_doubt_into_abstention(posts):
    states = []
    for margin in (0.0, 50.0):
        agent = OfflineAgent("user", [TextView(CharacterNgrams(), temper=0.2)], CLASSES, margin=margin)
        agent.fit(posts[0], pool=posts[1])
        states.append({judgment.state for judgment in agent.judge(posts[1][:20])})
    assert states == [{State.LABEL}, {State.ABSTAIN}]


def test_the_prior_of_the_labelled_posts_counts_as_much_as_asked(posts):
    few = [post for i, post in enumerate(posts[0]) if post.label == "flower" or i < 20]
    odds = []
    for prior in (0.0, 1.0):
        agent = reviewer(prior=prior)
        agent.fit(few, pool=posts[1])
        found = agent.judge(posts[1][:1])[0].details["log_odds"]
        odds.append(found["flower"] - found["metal"])
    assert odds[1] - odds[0] == pytest.approx(np.log(30 / 10))


def test_trust_is_out_of_fold(posts):
    random = np.random.default_rng(0)
    noise = [Post(p.id, p.text, label=str(random.choice(CLASSES))) for p in posts[0]]
    panel = CrossReview(*offline_agents(CLASSES))
    panel.fit(noise)
    assert all(one.near_chance for one in trust(panel, noise)[0].agents.values())
    panel.fit(posts[0])
    assert all(one.balanced.value > 0.9 for one in trust(panel, posts[0])[0].agents.values())


def test_three_classes():
    random = np.random.default_rng(0)
    words = {"flower": FLOWERS, "metal": METALS, "sea": ["wave", "tide", "coral", "shark", "reef", "salt"]}
    posts = [
        Post(f"{name}{i}", " ".join(random.choice(vocabulary, 3)), (), name)
        for i in range(40)
        for name, vocabulary in words.items()
    ]
    panel = CrossReview(*offline_agents(tuple(words)))
    panel.fit(posts[:60], pool=posts[60:])
    verdicts = panel.verify([Candidate(post, str(post.label), 0.8) for post in posts[60:]])
    assert np.mean([verdict.consistent for verdict in verdicts]) > 0.9
    wrong = panel.verify([Candidate(post, "sea", 0.8) for post in posts[60:] if post.label != "sea"])
    assert np.mean([verdict.consistent for verdict in wrong]) < 0.1


def image_vectors(posts):
    """Two clusters by label; ids that begin with "none" have no image."""
    rows = np.zeros((len(posts), 8), np.float32)
    for row, post in zip(rows, posts, strict=True):
        random = np.random.default_rng(sum(map(ord, post.id)))
        row[:] = random.normal(size=8) + (4 if post.label == "flower" else -4) * np.eye(8)[0]
        row[:] = 0 if post.id.startswith("none") else row / np.linalg.norm(row)
    return rows


def test_a_post_is_judged_by_the_view_that_it_has(posts):
    pictures = [Post(f"i{i}", "", (), CLASSES[i % 2]) for i in range(40)]
    panel = CrossReview(*offline_agents(CLASSES, image_vectors=image_vectors))
    panel.fit([*posts[0], *pictures[:20]], pool=posts[1])
    asked = [*pictures[20:], Post("none text only", "rose tulip lily", label="flower")]
    for agent in panel._agents:
        assert [judgment.label for judgment in agent.judge(asked)] == [post.label for post in asked]
        (nothing,) = agent.judge([Post("none at all")])
        assert nothing.state is State.ABSTAIN
        near = agent.judge(asked[:1])[0].details["nearest"]
        assert near
        assert all(one["id"].startswith(("i", "p")) for one in near)


@pytest.mark.parametrize("measure", ["neighbours", "centroid"])
def test_image_evidence_is_left_out(measure):
    random = np.random.default_rng(0)
    table = {f"r{i}": random.normal(size=64) for i in range(60)}
    posts = [Post(i, label=CLASSES[int(random.integers(2))]) for i in table]
    view = ImageView(lambda asked: np.array([table[p.id] for p in asked], np.float32), measure)
    agent = OfflineAgent("user", [view], CLASSES)
    agent.fit(posts)
    said = agent.predict_out_of_fold(posts)
    assert np.mean([j.label == p.label for j, p in zip(said, posts, strict=True)]) < 0.7


def test_too_few_images_say_nothing_instead_of_something(posts):
    labelled = [Post(f"none {p.id}", p.text, (), p.label) for p in posts[0]] + [Post("i1", "", (), "flower")]
    agent = offline_agents(CLASSES, image_vectors=image_vectors)[0]
    agent.fit(labelled, pool=posts[1])
    (judgment,) = agent.judge([Post("i2", "", (), "flower")])
    assert judgment.state is State.ABSTAIN


@pytest.mark.parametrize("text", ["", "the same words everywhere", "\U0001f339"])
def test_posts_whose_texts_tell_nothing_are_judged_by_their_pictures_or_by_nobody(text):
    pictures = [Post(f"i{i}", text, (), CLASSES[i % 2]) for i in range(40)]
    for vectors, expected in ((image_vectors, [one.label for one in pictures[:6]]), (None, [None] * 6)):
        for agent in offline_agents(CLASSES, image_vectors=vectors):
            agent.fit(pictures, pool=pictures)
            assert [one.label for one in agent.judge(pictures[:6])] == expected
            assert len(agent.predict_out_of_fold(pictures)) == 40


def test_labelled_posts_without_a_word_learn_nothing_from_the_words_of_a_pool(posts):
    labelled = [Post(f"i{i}", "", (), CLASSES[i % 2]) for i in range(20)]
    agent = offline_agents(CLASSES)[0]
    agent.fit(labelled, pool=posts[1])
    assert {one.label for one in agent.judge(posts[1][:5])} == {None}


def test_image_vectors_of_the_wrong_shape_are_refused(posts):
    agent = offline_agents(CLASSES, image_vectors=lambda asked: np.zeros((1, 8), np.float32))[0]
    with pytest.raises(LearningError, match=r"\(1, 8\) for 60 posts"):
        agent.fit(posts[0])

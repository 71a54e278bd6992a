"""What an agent adds to the others: a copy nothing, one of its own errors something; also before a run."""

import numpy as np
import pytest
from test_verdict_rules import Panel, make_corpus

from agents.judgment import Judgment, State
from selftrain.rounds import AgentGain, gain_lines
from selftrain.verification.panel_check import check_panel
from selftrain.verification.posterior import Beliefs, agent_gains


def said(*, accuracy, shared, posts=2000, classes=2, seed=0):
    """Labels, a classifier that knows nothing, and agents with errors in common on a share of the posts."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(classes, size=posts)
    luck, together = draw.random(posts), draw.random(posts) < shared
    columns = [
        np.where(np.where(together, luck, draw.random(posts)) < one, labels, (labels + 1) % classes)
        for one in accuracy
    ]
    return Beliefs(np.zeros((posts, classes)), np.stack(columns, axis=1)), labels


def entropy(*probs):
    return -sum(p * np.log2(p) for p in probs if p)


def test_the_gain_of_an_agent_alone_is_its_mutual_information_with_the_class():
    beliefs, labels = said(accuracy=(0.8,), shared=0.0, posts=8000)
    gain = agent_gains(beliefs, labels, ("reviewer",), 2)["reviewer"]
    assert gain.open == pytest.approx(1, abs=0.01)
    assert gain.bits == pytest.approx(1 - entropy(0.8, 0.2), abs=0.03)
    assert gain.low < gain.bits < gain.high


@pytest.mark.parametrize("classes", [2, 4])
def test_a_second_agent_adds_less_the_more_it_errs_with_the_first_and_a_copy_nothing(classes):
    gains = []
    for shared in (0.0, 0.7, 1.0):
        beliefs, labels = said(accuracy=(0.8, 0.8), shared=shared, classes=classes)
        gains.append(agent_gains(beliefs, labels, ("reviewer", "user"), classes)["user"])
    assert gains[0].bits > gains[1].bits > gains[2].bits
    assert gains[0].low > 0
    assert gains[2].bits == pytest.approx(0, abs=0.01)
    assert gains[0].open == pytest.approx(gains[2].open, abs=0.05)  # the first alone knows as much in all


def test_few_labels_do_not_make_a_gain_out_of_guesses():
    found = []
    for seed in range(20):
        beliefs, labels = said(accuracy=(0.8, 0.5), shared=0.0, posts=100, seed=seed)
        found.append(agent_gains(beliefs, labels, ("reviewer", "user"), 2)["user"])
    assert np.mean([one.bits for one in found]) < 0.01
    assert np.mean([one.low > 0 for one in found]) <= 0.1


def test_what_is_said_of_a_second_agent():
    worth = {"a": AgentGain(0.2, 0.1, 0.3, 0.8), "b": AgentGain(0.1, 0.05, 0.15, 0.7)}
    assert list(gain_lines(worth))[-1] == "each adds to the other: b, who adds least, is worth a call"
    told = list(gain_lines({**worth, "b": AgentGain(0.01, -0.05, 0.07, 0.7)}))
    assert told[1] == "b adds +0.010 bits a post (-0.050 to +0.070) of the 0.700 that are open without it"
    assert "what b adds to a cannot be told from nothing" in told[2]
    assert "agents.count = 1" in told[2]
    assert len(list(gain_lines({"a": worth["a"]}))) == 1
    assert list(gain_lines({})) == []


class Silent(Panel):
    """The User answers one post in fifty; the Reviewer as it does."""

    def _judge(self, role, post):
        if role == "user" and int(post.id[1:]) % 50:
            return Judgment(role, 0, State.ABSTAIN, None, None, "nothing", "fake")
        return super()._judge(role, post)


def test_an_agent_that_hardly_answers_is_said_to_be_useless_before_a_run():
    corpus = make_corpus()
    found = check_panel(Silent(corpus), corpus, asked=60, advice="ask another one")
    (warning,) = found.warnings()
    assert warning.startswith("user gave a label to 3 of 140 posts")
    assert warning.endswith("abstained on most of them, and is useless so: ask another one")
    lines = list(found.lines())
    assert lines[0] == warning
    assert any(line.startswith("reviewer: gives 100% of the posts a label") for line in lines)
    assert "posts asked about: at most 60; answers, before cross-review: 120" in lines
    assert found.gains["reviewer"].bits > found.gains["user"].bits
    assert not list(check_panel(Panel(corpus), corpus, asked=60, advice="").warnings())


def test_an_agent_that_fails_is_told_apart_from_one_that_abstains():
    corpus = make_corpus()

    class Broken(Panel):
        def _judge(self, role, post):
            return Judgment(role, 0, State.FAILED, None, None, "no answer", "fake")

    warnings = list(check_panel(Broken(corpus), corpus, asked=9, advice="mend it").warnings())
    assert len(warnings) == 2
    assert all("gave a label to 0 of 140 posts" in one and "failed on most" in one for one in warnings)

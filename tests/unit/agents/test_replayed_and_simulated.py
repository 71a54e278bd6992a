from __future__ import annotations

import json

import numpy as np
import pytest
from agents_helpers import Post, Scripted

from agents.errors import ReplayError, SimulationError
from agents.judgment import Candidate, State
from agents.panel import CrossReview, review
from agents.replayed import replayed_agents
from agents.simulated import SimulatedAgent, symmetric

ODD_IDS = [
    "a b",
    "ü/..\\",
    "\u202eright-to-left",
    '"quoted"',
    "line\nbreak",
    "line\u2028separator",
    "nul\0",
    "",
]


def save(path, verdicts):
    path.write_text("".join(json.dumps(v.to_json(), ensure_ascii=False) + "\n" for v in verdicts), "utf-8")
    return path


def test_replay_gives_back_what_was_said_even_for_odd_ids(tmp_path):
    said = dict.fromkeys(ODD_IDS, "flower") | {"a b": "metal", "": "!"}
    agents = Scripted("reviewer", said, said), Scripted("user", said, said)
    candidates = [Candidate(Post(i), "flower", 0.75) for i in ODD_IDS]
    verdicts = review(candidates, agents)
    assert {v.consistent for v in verdicts} == {True, False}
    replayed = replayed_agents(save(tmp_path / "verdicts.jsonl", verdicts))
    assert [agent.role for agent in replayed] == ["reviewer", "user"]
    assert review(candidates, replayed) == verdicts


def test_a_post_that_is_not_in_the_file_is_failed(tmp_path):
    agents = [Scripted(role, {"a": "flower"}) for role in ("reviewer", "user")]
    path = save(tmp_path / "v.jsonl", review([Candidate(Post("a"), "flower", 0.8)], agents))
    replayed = replayed_agents(str(path))
    assert [j.state for j in replayed[0].judge([Post("b"), Post("a")])] == [State.FAILED, State.LABEL]
    (verdict,) = review([Candidate(Post("a"), "metal", 0.8)], replayed)
    assert [j.state for j in verdict.judgments] == [State.LABEL, State.LABEL, State.FAILED, State.FAILED]
    assert not verdict.consistent


def test_lines_of_judgments_replay_too(tmp_path):
    (judgment,) = Scripted("user", {"a": "metal"}).judge([Post("a")])
    path = tmp_path / "judgments.jsonl"
    path.write_text(json.dumps({"post_id": "a", **judgment.to_json()}) + "\n\n")
    (agent,) = replayed_agents(path)
    assert agent.judge([Post("a")]) == [judgment]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no judgment"), ("\n{", "line 2"), ("[]", "line 1"), ('{"post_id": 3}', "post_id")],
)
def test_an_unreadable_file_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "v.jsonl"
    path.write_text(text)
    with pytest.raises(ReplayError, match=message):
        replayed_agents(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ReplayError, match=r"absent\.jsonl"):
        replayed_agents(tmp_path / "absent.jsonl")


COUNT = 4000
POSTS = [Post(f"post {i}", label=("flower", "metal")[i % 2]) for i in range(COUNT)]
TRUE = {post.id: str(post.label) for post in POSTS}
MATRIX = {"flower": {"flower": 0.9, "metal": 0.1}, "metal": {"flower": 0.3, "metal": 0.7}}


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_simulated_answers_follow_the_confusion_matrix_and_the_rates(shared):
    agent = SimulatedAgent("user", TRUE, MATRIX, abstention=0.1, failure=0.05, shared=shared, seed=3)
    said = agent.judge(POSTS)
    for state, rate in ((State.ABSTAIN, 0.1), (State.FAILED, 0.05)):
        share = np.mean([j.state is state for j in said])
        assert abs(share - rate) < 4 * np.sqrt(rate * (1 - rate) / COUNT)
    for true, row in MATRIX.items():
        given = [j.label for j, post in zip(said, POSTS, strict=True) if post.label == true and j.label]
        error = 4 * np.sqrt(row["flower"] * row["metal"] / len(given))
        assert abs(np.mean([label == "flower" for label in given]) - row["flower"]) < error


def test_draws_depend_on_seed_role_and_post_alone():
    agent = SimulatedAgent("user", TRUE, MATRIX, seed=1)
    said = agent.judge(POSTS[:200])
    assert agent.judge(POSTS[:200][::-1])[::-1] == said
    assert [agent.judge([post])[0] for post in POSTS[:200]] == said
    agent = SimulatedAgent("user", TRUE, MATRIX, shared=0.0, seed=1)  # with a share, roles agree on purpose
    said = agent.judge(POSTS[:200])
    others = [
        SimulatedAgent("user", TRUE, MATRIX, shared=0.0, seed=2),
        SimulatedAgent("reviewer", TRUE, MATRIX, shared=0.0, seed=1),
    ]
    for other in others:
        assert [j.label for j in other.judge(POSTS[:200])] != [j.label for j in said]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("shared", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("accuracies", [(0.8, 0.8), (0.9, 0.6)])
def test_agents_err_together_as_much_as_is_said_and_each_stays_as_good_as_it_is(classes, shared, accuracies):
    names = [f"class {k}" for k in range(classes)]
    truth = [names[i % classes] for i in range(COUNT)]
    posts = [Post(f"post {i}", label=one) for i, one in enumerate(truth)]
    known = dict(zip((post.id for post in posts), truth, strict=True))
    said = [
        [j.label for j in SimulatedAgent(role, known, symmetric(names, share), shared=shared).judge(posts)]
        for role, share in zip("ab", accuracies, strict=True)
    ]
    wrong = np.array([[label != true for label, true in zip(one, truth, strict=True)] for one in said])
    for rate, accuracy in zip(wrong.mean(1), accuracies, strict=True):
        assert abs(rate - (1 - accuracy)) < 4 * np.sqrt(accuracy * (1 - accuracy) / COUNT)
    fewer, more = sorted(1 - accuracy for accuracy in accuracies)
    phi = shared * np.sqrt(fewer * (1 - more) / (more * (1 - fewer)))
    assert np.corrcoef(wrong)[0, 1] == pytest.approx(phi, abs=4.5 / np.sqrt(COUNT))
    both = shared + (1 - shared) * more  # of the better agent's errors, those that the other makes too
    better = wrong[int(np.argmax(accuracies))]
    errors = wrong.all(0).sum() / better.sum()
    assert errors == pytest.approx(both, abs=4.5 * np.sqrt(0.25 / better.sum()))


def test_agents_that_share_all_give_the_same_wrong_label():
    names = ["a", "b", "c", "d"]
    known = {f"post {i}": names[i % 4] for i in range(400)}
    agents = [SimulatedAgent(role, known, symmetric(names, 0.5), shared=1.0) for role in "xy"]
    first, second = ([j.label for j in agent.judge([Post(i) for i in known])] for agent in agents)
    assert first == second
    assert {label for label, true in zip(first, known.values(), strict=True) if label != true} == set(names)


def test_a_post_without_a_known_label_is_failed():
    (judgment,) = SimulatedAgent("user", {}, MATRIX).judge([Post("x")])
    assert judgment.state is State.FAILED


def test_a_panel_of_simulated_or_replayed_simulated_agents_says_so(tmp_path):
    agents = [SimulatedAgent(role, TRUE, MATRIX) for role in ("reviewer", "user")]
    assert CrossReview(*agents).simulated
    assert CrossReview(*agents).describe()["simulated"] is True
    path = save(tmp_path / "v.jsonl", review([Candidate(POSTS[0], "flower", 0.8)], agents))
    assert CrossReview(*replayed_agents(path)).simulated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confusion": {"flower": {"flower": 0.9}}}, "no distribution"),
        ({"confusion": {"flower": {"flower": 1.1, "metal": -0.1}}}, "no distribution"),
        ({"confusion": {"flower": {"flower": 1.0}}}, "no row"),
        ({"abstention": 0.6, "failure": 0.6}, "abstention 0.6"),
        ({"shared": -0.1}, "shared -0.1"),
    ],
)
def test_a_simulation_of_nothing_is_refused(change, message):
    with pytest.raises(SimulationError, match=message):
        SimulatedAgent("user", **{"answers": TRUE, "confusion": MATRIX, **change})

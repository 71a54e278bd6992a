from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.errors import JudgmentError
from agents.judgment import SURE, Judgment, Posterior, State, Verdict


def judgment(label="flower", step=0, agent="reviewer", **changes):
    state = State.ABSTAIN if label is None else State.LABEL
    probability = None if label is None else 0.7
    return Judgment(**{
        "agent": agent, "step": step, "state": state, "label": label, "probability": probability,
        "rationale": "because", "source": "test", **changes,
    })  # fmt: skip


@pytest.mark.parametrize("state", [State.ABSTAIN, State.FAILED])
def test_only_the_label_state_carries_a_label(state):
    with pytest.raises(JudgmentError, match="only 'label' has one"):
        judgment(state=state)


def test_a_label_state_needs_a_label():
    with pytest.raises(JudgmentError, match="None"):
        judgment(None, state=State.LABEL)


@pytest.mark.parametrize("probability", [-0.01, 1.01, float("nan")])
def test_a_probability_lies_in_the_unit_interval(probability):
    with pytest.raises(JudgmentError, match="expected one in"):
        judgment(probability=probability)


def test_abstain_and_failed_stay_different_in_a_record():
    records = [judgment(None, state=state).to_json() for state in (State.ABSTAIN, State.FAILED)]
    assert [record["state"] for record in records] == ["abstain", "failed"]
    assert [Judgment.from_json(record).state for record in records] == [State.ABSTAIN, State.FAILED]


@given(
    text=st.text(), probability=st.floats(0, 1), agent=st.text(min_size=1),
    details=st.dictionaries(st.text(), st.floats(-1e6, 1e6) | st.lists(st.integers()) | st.none()),
)  # fmt: skip
def test_records_round_trip_to_the_byte(text, probability, agent, details):
    one = judgment(agent=agent, rationale=text, probability=probability, details=details)
    verdict = Verdict("id\0\n", "flower", probability, (one,))
    line = json.dumps(verdict.to_json())
    assert json.dumps(Verdict.from_json(json.loads(line)).to_json()) == line


def test_floats_are_rounded_in_records_only():
    one = judgment(probability=1 / 3, details={"x": (2 / 3, -1e-9)})
    assert one.probability == 1 / 3
    assert one.to_json()["probability"] == 0.333333
    assert json.dumps(one.to_json()["details"]) == '{"x": [0.666667, 0.0]}'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": "perhaps"}, "unknown state"),
        ({"state": "failed"}, "only 'label' has one"),
        ({"label": None}, "only 'label' has one"),
        ({"label": 3}, "label is a int"),
        ({"step": True}, "step is a bool"),
        ({"step": -1}, "step -1"),
        ({"probability": "0.7"}, "probability is a str"),
        ({"probability": 1.5}, "expected one in"),
        ({"extra": 1}, "unknown keys"),
        ({"details": []}, "details is a list"),
    ],
)
def test_a_malformed_judgment_record_is_refused(change, message):
    with pytest.raises(JudgmentError, match=message):
        Judgment.from_json({**judgment().to_json(), **change})


def test_a_missing_key_is_named():
    record = judgment().to_json()
    del record["rationale"]
    with pytest.raises(JudgmentError, match="rationale"):
        Judgment.from_json(record)


def test_details_that_json_does_not_have_are_refused():
    with pytest.raises(JudgmentError, match="nan"):
        judgment(details={"x": float("nan")}).to_json()
    with pytest.raises(JudgmentError, match="set"):
        judgment(details={"x": {1}}).to_json()


def test_a_verdict_that_contradicts_its_judgments_is_refused():
    record = Verdict("a", "flower", 0.9, (judgment(),)).to_json()
    assert record["consistent"] is True
    with pytest.raises(JudgmentError, match="consistent"):
        Verdict.from_json({**record, "consistent": False})


@pytest.mark.parametrize("off", [-6e-7, -4e-7, 0.0, 4e-7, 6e-7])
@pytest.mark.parametrize("limit", [0.5, 0.8, SURE])
def test_a_posterior_beside_its_threshold_is_read_as_it_was_written(limit, off):
    rest = (1 - limit - off) / 3
    probs = {"flower": limit + off, "metal": rest, "other": rest, "none": rest}
    verdict = Verdict("a", "flower", 0.9, (judgment(),), (), Posterior(probs, {}, probs, limit, 1.0))
    read = Verdict.from_json(json.loads(json.dumps(verdict.to_json())))
    assert (read.consistent, read.doubtful) == (verdict.consistent, verdict.doubtful)
    assert verdict.consistent == (off > -5e-7)


def test_without_judgments_nothing_is_consistent():
    assert not Verdict("a", "flower", 0.9, ()).consistent


def test_the_last_judgment_is_the_one_of_the_highest_step():
    verdict = Verdict("a", "flower", 0.9, (judgment("metal", 1), judgment("flower", 0)))
    assert verdict.last("reviewer").label == "metal"
    assert verdict.last("nobody") is None


@pytest.mark.parametrize(
    ("label", "probability", "details", "expected"),
    [
        ("a", 0.7, {}, [0.7, 0.15, 0.15]),
        ("b", 1.0, {}, [1e-6, 1.0, 1e-6]),
        (None, None, {"probabilities": {"a": 0.5, "b": 0.3, "c": 0.2}}, [0.5, 0.3, 0.2]),
        ("a", 0.9, {"log_odds": {"a": 1.0, "b": 0.0, "c": -1.0}}, [0.665241, 0.244728, 0.090031]),
        (None, None, {}, None),
        ("a", None, {}, None),
    ],
)
def test_what_an_agent_gives_each_class(label, probability, details, expected):
    state = State.ABSTAIN if label is None else State.LABEL
    found = Judgment("user", 0, state, label, probability, "", "x", details).log_probs(["a", "b", "c"])
    if expected is None:
        assert found is None
    else:
        assert [math.exp(one) for one in found] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rationale": None}, "the rationale of a judgment is None: expected a text"),
        ({"state": "label"}, "the state of a judgment is 'label': expected one of `State`"),
        ({"label": 1}, "the label of a judgment is 1: expected the name of a class, or None"),
        ({"probability": "0.7"}, "the probability of a judgment is '0.7': expected a number"),
        ({"probability": True}, "the probability of a judgment is True"),
        ({"step": 0.5}, "the step of a judgment is 0.5: expected a whole number"),
        ({"details": None}, "the details of a judgment is None: expected a mapping"),
    ],
)
def test_what_could_not_be_read_again_is_refused_at_once(change, message):
    with pytest.raises(JudgmentError, match=message):
        judgment(**change)


def test_numbers_of_numpy_are_numbers():
    one = judgment(
        step=np.int64(1), probability=np.float32(0.75), details={"n": np.int32(3), "x": np.float16(2)}
    )
    record = json.loads(json.dumps(one.to_json()))
    assert (record["step"], record["probability"], record["details"]) == (1, 0.75, {"n": 3, "x": 2.0})
    with pytest.raises(JudgmentError, match="nan"):
        judgment(details={"x": np.float32("nan")}).to_json()

"""Answers of any model, a file each: what is read, what is refused, what is counted."""

from __future__ import annotations

import json

import pytest
from agents_helpers import Post

from agents.ask.metering import Metered
from agents.errors import ReplayError
from agents.judgment import Candidate, State
from agents.replayed import AnswersPanel, read_answers
from agents.trust import trust

CLASSES = ("flower", "metal")


def write(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def answer(post_id, label, **more):
    return {"id": post_id, "label": label, **more}


@pytest.fixture
def llama(tmp_path):
    rows = (
        answer("a", "flower", probability=0.75, rationale="petals", tokens=12),
        answer("b", "metal"),
        "",
        answer("c", None),
    )
    return write(tmp_path / "llama.jsonl", *rows)


@pytest.fixture
def gpt(tmp_path):
    return write(tmp_path / "gpt.jsonl", answer("a", "metal"), answer("b", "metal"), answer("d", "flower"))


def test_a_file_is_an_agent_that_answers_what_stands_in_it(llama):
    panel = AnswersPanel([llama], CLASSES)
    said = panel.predict_out_of_fold([Post("c"), Post("a"), Post("b")])["llama"]
    assert [(one.state, one.label, one.probability, one.rationale) for one in said] == [
        (State.ABSTAIN, None, None, ""),
        (State.LABEL, "flower", 0.75, "petals"),
        (State.LABEL, "metal", None, ""),
    ]
    assert {(one.agent, one.step, one.source) for one in said} == {("llama", 0, "replayed:llama.jsonl")}
    assert panel.describe()["agents"] == [
        {"role": "llama", "source": "replayed:llama.jsonl", "simulated": False, "answers": 3}
    ]


def test_a_verdict_holds_one_judgment_an_agent_whatever_their_number(llama, gpt, tmp_path):
    third = write(tmp_path / "third.jsonl", answer("b", "metal"))
    candidates = [Candidate(Post("b"), "metal", 0.8), Candidate(Post("a"), "flower", 0.9)]
    for files, agreed in (
        ([llama], [True, True]),
        ([llama, gpt], [True, False]),
        ([third, gpt, llama], [True, False]),
    ):
        verdicts = AnswersPanel(files, CLASSES).verify(candidates)
        assert [one.post_id for one in verdicts] == ["b", "a"]
        assert all(one.agents == tuple(file.stem for file in files) for one in verdicts)
        assert [one.consistent for one in verdicts] == agreed


def test_a_post_without_an_answer_is_failed_and_counted(llama, gpt):
    panel = AnswersPanel([llama, gpt], CLASSES)
    (verdict,) = panel.verify([Candidate(Post("d"), "flower", 0.8)])
    first, second = verdict.judgments
    assert (first.state, first.rationale) == (State.FAILED, "no answer in llama.jsonl")
    assert second.label == "flower"
    assert not verdict.consistent
    posts = [Post(post_id) for post_id in "abcdefghi"]
    of_llama, of_gpt = panel.missing(posts)
    assert (of_llama.posts, of_gpt.posts) == (6, 7 - 1)
    assert str(of_llama) == "llama: 6 of 9 posts have no answer in llama.jsonl (d, e, f, g, h, ...)"
    assert panel.missing(posts[:2]) == []


def test_an_answer_is_counted_once_however_often_it_is_asked_for(llama, gpt):
    panel = AnswersPanel([llama, gpt], CLASSES)
    assert isinstance(panel, Metered)
    for _ in range(2):
        panel.predict_out_of_fold([Post("a"), Post("c")])
    # a twice by two agents, c twice by llama, while gpt has no answer on it
    assert panel.usage()[:3] == (3, 3, 2)


def test_trust_is_measured_on_one_agent_as_on_three(llama):
    known = [Post("a", label="flower"), Post("b", label="metal"), Post("c", label="metal")]
    found, _ = trust(AnswersPanel([llama], CLASSES), known)
    assert found.agents["llama"].answered == 2
    assert found.agents["llama"].accuracy.value == 1.0
    assert found.kappa == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (answer("b", "gold"), "line 2: label is 'gold': expected one of 'flower', 'metal', or null"),
        (answer("a", "metal"), "line 2: id 'a' stands in line 1 already: expected one answer a post"),
        (answer("b", "metal", probability=1.5), "line 2: probability is 1.5: .*less than or equal to 1"),
        (answer("b", "metal", probability="high"), "line 2: probability is 'high': .*valid number"),
        ('{"id": "b", "label": "metal", "probability": NaN}', "line 2: "),
        (answer("b", None, probability=0.5), "line 2: probability is 0.5 but label is null"),
        ({"id": "b"}, 'line 2: no "label": expected'),
        (answer(7, "metal"), "line 2: id is 7: .*valid string"),
        ("[]", "line 2: "),
        ('{"id": ', "line 2: .*Invalid JSON"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused_with_its_place(tmp_path, row, message):
    path = write(tmp_path / "llama.jsonl", answer("a", "flower"), row)
    with pytest.raises(ReplayError, match=rf"llama\.jsonl, {message}"):
        read_answers(path, CLASSES)


def test_files_that_make_no_panel_are_refused(tmp_path, llama):
    with pytest.raises(ReplayError, match=r"absent\.jsonl"):
        AnswersPanel([tmp_path / "absent.jsonl"], CLASSES)
    with pytest.raises(ReplayError, match="holds no answer: expected lines like"):
        AnswersPanel([write(tmp_path / "empty.jsonl")], CLASSES)
    with pytest.raises(ReplayError, match="expected one or more"):
        AnswersPanel([], CLASSES)
    (tmp_path / "other").mkdir()
    with pytest.raises(ReplayError, match="a name of its own"):
        AnswersPanel([llama, write(tmp_path / "other" / "llama.jsonl", answer("a", "flower"))], CLASSES)

"""Answers of any model, a file each: what is read, what is refused, what is counted."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from agents_helpers import Post

from agents.ask.metering import Metered
from agents.errors import ReplayError
from agents.judgment import Candidate, State
from agents.replayed import AnswersPanel
from agents.trust import trust
from selftrain.data.answer_files import read_answers

CLASSES = ("flower", "metal")


def write(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def panel_of(*files):
    return AnswersPanel([(file, read_answers(file, CLASSES)) for file in files])


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
    panel = panel_of(llama)
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
        verdicts = panel_of(*files).verify(candidates)
        assert [one.post_id for one in verdicts] == ["b", "a"]
        assert all(one.agents == tuple(file.stem for file in files) for one in verdicts)
        assert [one.consistent for one in verdicts] == agreed


def test_a_post_without_an_answer_is_failed_and_counted(llama, gpt):
    panel = panel_of(llama, gpt)
    (verdict,) = panel.verify([Candidate(Post("d"), "flower", 0.8)])
    first, second = verdict.judgments
    assert (first.state, first.rationale) == (State.FAILED, "no answer in llama.jsonl")
    assert second.label == "flower"
    assert not verdict.consistent
    posts = [Post(post_id) for post_id in "abcdefghi"]
    of_llama, of_gpt = panel.missing(posts)
    assert of_gpt.startswith("gpt: 6 of 9 posts have no answer in")
    assert of_llama == "llama: 6 of 9 posts have no answer in llama.jsonl (d, e, f, g, h, ...)"
    assert not list(panel.missing(posts[:2]))


def test_an_answer_is_counted_once_however_often_it_is_asked_for(llama, gpt):
    panel = panel_of(llama, gpt)
    assert isinstance(panel, Metered)
    for _ in range(2):
        panel.predict_out_of_fold([Post("a"), Post("c")])
    # a twice by two agents, c twice by llama, while gpt has no answer on it
    assert panel.usage()[:3] == (3, 3, 2)


def test_trust_is_measured_on_one_agent_as_on_three(llama):
    known = [Post("a", label="flower"), Post("b", label="metal"), Post("c", label="metal")]
    found, _ = trust(panel_of(llama), known)
    assert found.agents["llama"].answered == 2
    assert found.agents["llama"].accuracy.value == 1.0
    assert found.kappa == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (answer("b", "gold"), "line 2: label is 'gold': expected one of 'flower', 'metal', or null"),
        (answer("a", "metal"), "line 2: id 'a' stands in line 1 already: expected one answer a post"),
        (answer("b", "metal", probability=1.5), "line 2: probability is 1.5: expected a number from 0 to 1"),
        (answer("b", "metal", probability="high"), "line 2: probability is 'high': expected a number"),
        (answer("b", "metal", probability=float("inf")), "line 2: probability is inf: expected a number"),
        (answer("b", "metal", probability=True), "line 2: probability is True: expected a number"),
        (answer("b", None, probability=0.5), "line 2: probability is 0.5 but label is null"),
        (answer("b", ["metal", "flower"]), "line 2: 2 labels"),
        (answer("b", "m\u0435tal"), "line 2: label is .*CYRILLIC SMALL LETTER IE"),
        ('{"id": "b", "label": "metal", "label": "flower"}', "line 2: the keys .*label.* stand twice"),
        ({"id": "b"}, 'line 2: no "label": expected'),
        (answer(7.5, "metal"), "line 2: id 7.5 is a float, expected a text"),
        (answer(" ", "metal"), "line 2: id is ' ': expected a text"),
        ("[]", "line 2: "),
        ('{"id": ', "line 2: not JSON"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused_with_its_place(tmp_path, row, message):
    path = write(tmp_path / "llama.jsonl", answer("a", "flower"), row)
    with pytest.raises(ReplayError, match=rf"llama\.jsonl, {message}"):
        read_answers(path, CLASSES)


def test_files_that_make_no_panel_are_refused(tmp_path, llama):
    with pytest.raises(ReplayError, match=r"absent\.jsonl"):
        panel_of(tmp_path / "absent.jsonl")
    with pytest.raises(ReplayError, match="holds no answer: expected answers, a line each"):
        panel_of(write(tmp_path / "empty.jsonl"))
    with pytest.raises(ReplayError, match="expected one or more"):
        panel_of()
    (tmp_path / "other").mkdir()
    with pytest.raises(ReplayError, match="a name of its own"):
        panel_of(llama, write(tmp_path / "other" / "llama.jsonl", answer("a", "flower")))
    with pytest.raises(ReplayError, match="a name of its own"):
        panel_of(llama, llama)
    with pytest.raises(ReplayError, match="has the columns"):
        panel_of(write(tmp_path / "words.csv", "id;class", "a;flower"))


@pytest.mark.parametrize("form", ["plain", "words", "csv", "list", "gzip", "utf-16", "parquet"])
def test_answers_come_in_every_form_that_a_manifest_may_have(tmp_path, form):
    rows = [
        answer("1", "flower", probability=0.25),
        answer("2", "metal", probability=0.75),
        answer("3", None),
    ]
    path = tmp_path / "llama.jsonl"
    written = "".join(json.dumps(row) + "\n" for row in rows)
    if form == "words":  # other spellings, a number for a text, nothing in its forms
        rows = [{"Id": 1, "LABEL": " Flower", "probability": "0.25"}, answer(2, ["metal"], probability=0.75)]
        rows += ['{"id": 3, "label": "", "probability": NaN, "rationale": null}']
        write(path, *rows)
    elif form == "csv":
        path.write_text("id;label;probability\r\n1;flower;0.25\r\n2;metal;.75\r\n3;;\r\n")
    elif form == "list":
        path.write_text(json.dumps(rows))
    elif form == "gzip":
        path.write_bytes(gzip.compress(written.encode()))
    elif form == "parquet":
        columns = {key: [row.get(key) for row in rows] for key in ("id", "label", "probability")}
        pq.write_table(pa.table(columns), path)
    else:
        path.write_bytes(written.encode("utf-16" if form == "utf-16" else "utf-8-sig"))
    found = read_answers(path, CLASSES)
    assert {key: (one.state, one.label, one.probability) for key, one in found.items()} == {
        "1": (State.LABEL, "flower", 0.25),
        "2": (State.LABEL, "metal", 0.75),
        "3": (State.ABSTAIN, None, None),
    }


def test_of_two_columns_that_could_both_be_meant_the_name_itself_counts_or_none(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("id,Label,label\na,metal,flower\nb,metal,\n")
    assert [one.label for one in read_answers(table, CLASSES).values()] == ["flower", None]
    for text in ("id,Label,LABEL\na,metal,flower\n", 'id,"Label ",LABEL\na,metal,flower\n'):
        table.write_text(text)
        with pytest.raises(ReplayError, match="'LABEL' could both be label: keep one"):
            read_answers(table, CLASSES)


def test_an_answer_that_cannot_be_read_is_no_missing_one(tmp_path):
    columns = {"id": ["a"], "label": pa.array([b"\xff"], pa.binary())}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ReplayError, match="line 1: label cannot be read"):
        read_answers(tmp_path / "a.parquet", CLASSES)

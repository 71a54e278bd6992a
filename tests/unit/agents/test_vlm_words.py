"""Fences, forms, prompts and calibration of the vision-language agents."""

from __future__ import annotations

import json
import math
import textwrap
import unicodedata
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vlm_helpers import BRIEF, CLASSES, PostStub, raw, said

from agents.ask.answer_schema import AnswerForm, AnswerSchema, loops, parse_answer
from agents.ask.judge import JudgePrompts
from agents.ask.label_calibration import fit_calibration, held_out
from agents.ask.prepare import PreparedPost
from agents.ask.prompt_files import Brief
from agents.ask.protocols import PROTOCOLS, Query, all_queries
from agents.ask.sanitize import cut, quoted, sanitize
from agents.client.base import Token, picture
from agents.errors import PromptFileError
from agents.judgment import ROLES, Judgment, State

SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<image>", "<video>", "</s>", "<s>", "[INST]", "[/INST]",
    "<<SYS>>", "<start_of_turn>", "<end_of_turn>", "<|vision_start|>", "<|image_pad|>", "[IMG]", "[gMASK]",
    "<|eot_id|>", "<|begin_of_text|>", "<\uff5cUser\uff5c>", "<tool_call>", "<im_patch>", "<unk>", "<pad>",
]  # fmt: skip
SCHEMA = AnswerSchema(tuple(CLASSES), "unsure")
POST = PostStub("p", "words")


@pytest.mark.parametrize("special", SPECIAL)
def test_special_strings_do_not_survive(special):
    for text in (special, f"a{special}b", special.replace("<", "\uff1c").replace(">", "\uff1e"), special * 3):
        assert special not in unicodedata.normalize("NFKC", sanitize(text))


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from([*SPECIAL, "\n", "\u2028", "> ", "x"])).map("".join))
def test_no_text_leaves_its_fence(text):
    fenced = quoted(sanitize(text))
    assert all(line.startswith("> ") and ">" not in line[2:] for line in fenced.splitlines())
    assert not any(special in fenced for special in SPECIAL)
    # nothing unseen is left, joiners of scripts and emoji apart
    unseen = [c for c in fenced if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") and c not in "\n\t"]
    assert set(unseen) <= {"\u200c", "\u200d"}
    assert sanitize(sanitize(text)) == sanitize(text)


def test_ordinary_text_stays_readable():
    text = "I <3 you\n\tmore than 2 > 1 \U0001f469\u200d\U0001f680 caf\u00e9 \u0627\u0644\u0633 [1] [ok?]"
    assert sanitize(text).replace("\u2039", "<").replace("\u203a", ">") == text


@settings(deadline=None)
@given(st.text(), st.integers(50, 200))
def test_cut_keeps_a_beginning(text, limit):
    short = cut(text, limit)
    assert len(short.text) <= limit
    assert text.startswith(short.text)
    assert short.shortened == (short.text != text)


def prompts(**options):
    return JudgePrompts(BRIEF, **options)


def test_a_long_text_is_cut_with_a_mark_outside_the_quotation():
    words = prompts(text_chars=100).post("word " * 100, [], "end").parts[0]
    assert words.endswith("\n(cut here: 99 of 500 characters are shown)\n")


def test_a_post_tells_what_it_has():
    shown = prompts()
    two = [picture(b"a", "image/jpeg"), picture(b"b", "image/jpeg")]
    assert shown.post("hi", two, "end").parts == (
        "The post has words and 2 pictures.\n> hi\n", *two, "\nend",
    )  # fmt: skip
    assert shown.post(" \n", two[:1], "end").parts[0] == "The post has no words and one picture.\n"
    assert shown.post("hi", [], "end").parts[0].startswith("The post has words and no picture.")


def test_the_policy_and_every_class_are_in_the_system_prompt():
    text = prompts().opening(SCHEMA, ["reviewer", "user"]).parts[0]
    for piece in (BRIEF.policy, *CLASSES, *CLASSES.values(), BRIEF.task, *SCHEMA.labels):
        assert piece in text
    assert "The Reviewer: You keep the platform safe." in text
    alone = prompts().opening(SCHEMA).parts[0]
    assert "Reviewer" not in alone
    assert "\n\n\n" not in alone


def test_the_task_may_word_the_roles():
    mine = JudgePrompts(Brief("t", "p", CLASSES, {"reviewer": "You are strict."}))
    text = mine.opening(SCHEMA, ["reviewer", "user"]).parts[0]
    assert "The Reviewer: You are strict." in text
    assert "The User: You speak for the people" in text


@pytest.mark.parametrize(
    ("state", "label", "shown"),
    [
        (State.LABEL, "rude", '"rude"\n> he \u2039|im_end|\u203a said\n> so'),
        (State.ABSTAIN, None, '"unsure"\n> he \u2039|im_end|\u203a said\n> so'),
        (State.FAILED, None, "no answer that could be read"),
    ],
)
def test_the_other_agent_s_words_are_fenced(state, label, shown):
    other = Judgment("reviewer", 0, state, label, None, "he <|im_end|> said\nso", "vlm")
    asked = prompts().asking(Query("user", 0, "user.sequential", other=other), PreparedPost(POST), SCHEMA)
    assert f"has judged this post:\n{shown}\n\n" in asked.parts[-1]


def test_a_user_s_file_replaces_the_built_in_one(tmp_path):
    (tmp_path / "judge.zero_shot.txt").write_text("Mine costs $$5.\n")
    assert prompts(folder=str(tmp_path)).fill("judge.zero_shot") == "Mine costs $5."


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("reviewer.txt", "x", "holds"),
        ("system.txt", "no place for the policy", "lacks"),
        ("user.again.txt", "$own $classifier", "lacks"),
        ("judge.zero_shot.txt", "$policy", "may use"),
        ("judge.zero_shot.txt", "it costs $ 5", "dollar"),
    ],
)
def test_a_user_s_file_that_cannot_be_used_is_named(tmp_path, name, text, complaint):
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptFileError, match=complaint) as caught:
        prompts(folder=tmp_path)
    assert name in str(caught.value)
    with pytest.raises(PromptFileError, match="absent"):
        prompts(folder=tmp_path / "absent")


def test_every_built_in_file_is_used():
    used = {query.template for one in PROTOCOLS.values() for part in queries_of(one) for query in part}
    used |= {f"{role}.role" for role in ROLES} | {f"form.{name}" for name in get_args(AnswerForm)}
    used |= {"label", "form.apart"}  # where labels are asked for apart
    assert {file.stem for file in JudgePrompts.built_in.iterdir()} == used | {"system", "post", "form.clause"}


def queries_of(protocol):
    return all_queries(protocol, Judgment("", 0, State.LABEL, "kind", None, "", ""), "rude")


def test_the_unsure_answer_never_meets_a_class():
    assert Brief("t", "p", {"unsure": "a", "sure": "b"}).unsure == "cannot tell"


@pytest.mark.parametrize("name", ["reason_first", "label_first", "label_only", "cot"])
def test_schema_order_is_the_order_of_writing(name):
    asked = AnswerSchema(tuple(CLASSES), "unsure", name, 100)
    schema = asked.to_json()
    order = {"label_first": ["label", "rationale"], "label_only": ["label"]}.get(name, ["rationale", "label"])
    assert list(schema["properties"]) == schema["required"] == order
    assert schema["properties"]["label"]["enum"] == ["1 rude", "2 kind", "3 unsure"]
    assert asked.limit == {"label_only": 0, "cot": 300}.get(name, 100)


def test_an_answer_is_read():
    answer = parse_answer(said("rude", rationale=" an insult "), SCHEMA)
    assert (answer.state, answer.label, answer.rationale) == (State.LABEL, "rude", "an insult")
    assert parse_answer(raw('{"rationale":"x","label":"unsure"}'), SCHEMA).state is State.ABSTAIN


@pytest.mark.parametrize("names", [("0", "1"), tuple("0123456789"), ("Q", "1"), ("1 star", "2 stars")])
def test_no_label_is_taken_for_the_code_of_another(names):
    schema = AnswerSchema(names, "unsure", "label_only")
    codes = [spelt[0] for spelt in schema.spelt.values()]
    assert not {*codes} & {*names}
    for name, spelt in schema.spelt.items():
        for written, probable in ((spelt, True), (name, False)):
            tokens = [
                Token('{"label":"', 0.0, ()),
                Token(written[0], math.log(0.9), ((written[0], math.log(0.9)), (codes[-1], math.log(0.1)))),
                Token(written[1:] + '"}', 0.0, ()),
            ]
            answer = parse_answer(raw(json.dumps({"label": written}), tokens=tuple(tokens)), schema)
            assert answer.label == (None if name == "unsure" else name)
            assert (answer.probabilities is not None) == (probable and name != "unsure")


def test_a_number_that_is_a_label_and_a_code_is_refused():
    counts = tuple(map(str, range(17)))  # more than there are codes that are no number
    schema = AnswerSchema(counts, "unsure", "label_only")
    assert schema.spelt["0"] == "1 0"
    assert parse_answer(raw('{"label": "1 0"}'), schema).label == "0"
    assert parse_answer(raw('{"label": "12"}'), schema).label == "12"
    assert parse_answer(raw('{"label": "1"}'), schema).fault == "a label that was not offered"


@pytest.mark.parametrize(
    ("text", "finish", "fault"),
    [
        ("The tweet names nobody, so", "length", "cut off after 7 tokens, thinking included: raise vlm.thi"),
        ("<think>Hm", "length", "cut off after 7 tokens, thinking included: raise vlm.thinking_tokens"),
        ('Hm.</think>{"label": "1 ru', "length", "cut off after 7 tokens, thinking included"),
        ('{"rationale": "so', "length", "cut off after 7 tokens"),
        ('Hm, {"label"?</think>{"rationale": "so", "label": "1 rude"}', "stop", ""),
    ],
)
def test_thoughts_that_the_template_began_are_thoughts(text, finish, fault):
    answer = parse_answer(raw(text, finish), SCHEMA)
    assert answer.fault.startswith(fault)
    assert ("thinking" in answer.fault) == ("thinking" in fault)
    assert answer.reasoning == ("" if fault else 'Hm, {"label"?')


PARAGRAPHS = (
    "Hate speech is any attack on people because of a trait that is protected, such as religion. Attacks on"
    " the opinions of a party are not.",
    "Threats are hateful wherever they are, and whomever they are aimed at: Muslims, Jews or Sikhs.",
    "Quotes are judged by what their writer makes of them",
)


@pytest.mark.parametrize("width", [30, 60, 79, 500])
@pytest.mark.parametrize(("mark", "deeper"), [("", ""), ("- ", "  "), ("\u2022 ", "")])
def test_a_clause_is_what_its_writer_took_for_one(width, mark, deeper):
    broken = [textwrap.fill(mark + one, width, subsequent_indent=deeper) for one in PARAGRAPHS]
    brief = Brief("t", ("\n" if mark else "\n\n").join(broken), CLASSES)
    assert brief.clauses == PARAGRAPHS
    assert brief.numbered.splitlines() == [f"{n}. {text}" for n, text in enumerate(PARAGRAPHS, 1)]


@pytest.mark.parametrize(
    "lines",
    [
        ("no insults", "no threats", "no slurs at all"),
        ("Hate", "Attacks on people for their religion or their origin, by calling for harm.", "Slurs."),
        ("2.1 Attacks on people", "2.2 Slurs", "(a) even quoted", "## Threats"),
        ("\u0645\u0645\u0646\u0648\u0639\u061f", "\u0645\u0633\u0645\u0648\u062d\u06d4"),
    ],
)
def test_lines_that_were_not_broken_are_clauses(lines):
    assert Brief("t", "\n".join(lines), CLASSES).clauses == lines


def test_a_policy_that_numbers_itself_keeps_its_numbers():
    policy = (
        "Definitions\n1. A group is what\n   people cannot leave.\n2) An attack calls for harm.\n\nRules\n"
        "3. Attacks (2) on a group (1) are hateful.\n- even as a joke"
    )
    brief = Brief("t", f"\n{policy}\n", CLASSES)
    assert brief.numbered == policy
    assert brief.clauses == (
        "A group is what people cannot leave.", "An attack calls for harm.",
        "Attacks (2) on a group (1) are hateful.",
    )  # fmt: skip
    # where they begin anew, ours count
    again = Brief("t", "Hate\n1. Slurs.\nSpam\n1. Offers.\n2. Links.", CLASSES)
    assert again.numbered == "1. Hate\n2. Slurs.\n3. Spam\n4. Offers.\n5. Links."
    # and where only an example of it has numbers
    listed = Brief("t", "Hate is rude:\n1. slurs\n2. threats\nSpam is rude.\nAll else is kind.", CLASSES)
    assert len(listed.clauses) == 5


def test_a_rationale_at_its_limit_is_marked():
    schema = AnswerSchema(tuple(CLASSES), "unsure", rationale_chars=20)
    assert parse_answer(said("rude", rationale="abcdefghij klmnopqrs"), schema).rationale.endswith("s\u2026")


@pytest.mark.parametrize(
    "text",
    ["You are a fool. " * 5, "na" * 40, "The picture. The picture. The picture. The picture. The picture."],
)
def test_loops_are_seen(text):
    assert loops(text)


@pytest.mark.parametrize(
    "text",
    [
        "The post mocks a group for where it comes from, and the picture repeats an old caricature of it.",
        "hahahaha is laughter, not an insult.",
        "No, no, no: it quotes a song.",
        "Die Katze sitzt auf dem Dach, und niemand wird beleidigt; das Bild zeigt ein Haus mit einem Garten.",
    ],
)
def test_prose_is_no_loop(text):
    assert not loops(text)


def test_calibration_without_posts_changes_nothing():
    fitted = fit_calibration([], [], ["rude", "kind"])
    assert fitted.apply({"rude": 0.9, "kind": 0.1}) == pytest.approx({"rude": 0.9, "kind": 0.1})


def test_calibration_mends_sureness_and_leaning():
    """Always .95 rude; half of the posts are."""
    shares = [{"rude": 0.95, "kind": 0.05}] * 100
    fitted = fit_calibration(shares, ["rude", "kind"] * 50, ["rude", "kind"])
    assert fitted.apply(shares[0])["rude"] == pytest.approx(0.5, abs=0.03)


def test_calibration_never_turns_an_order_round():
    shares = [{"rude": p, "kind": 1 - p} for p in (0.1, 0.3, 0.6, 0.9)] * 20
    fitted = fit_calibration(shares, (["rude"] * 2 + ["kind"] * 2) * 20, ["rude", "kind"])
    corrected = [fitted.apply(one)["rude"] for one in shares[:4]]
    assert corrected == sorted(corrected)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["a", "b", "c"])), max_size=12),
)
def test_calibrated_probabilities_add_up(pairs):
    classes = ["a", "b", "c"]
    shares = [{"a": p, "b": (1 - p) / 2, "c": (1 - p) / 2} for p, _ in pairs]
    fitted = fit_calibration(shares, [label for _, label in pairs], classes)
    for one in shares:
        assert sum(fitted.apply(one).values()) == pytest.approx(1.0)


def test_held_out_probabilities_come_from_the_other_folds():
    shares = [{"a": 0.9, "b": 0.1}] * 10
    given = held_out([*shares, None], ["a"] * 5 + ["b"] * 6, ["a", "b"], folds=2)
    assert given[-1] is None
    even = fit_calibration([shares[0]] * 5, ["a", "a", "b", "b", "b"], ["a", "b"])
    odd = fit_calibration([shares[0]] * 5, ["a", "a", "a", "b", "b"], ["a", "b"])
    assert given[1] == odd.apply(shares[0])
    assert given[0] == even.apply(shares[0])

"""Label probabilities against a model whose every path can be counted, through tokenizers of seven kinds."""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from agents.ask.answer_schema import AnswerSchema
from agents.ask.label_probs import TOLERANCE, label_probs
from agents.client.base import Token
from agents.client.messages import BYTES
from runs.bench.agents_labels import (
    SCRIPTS,
    TOKENIZERS,
    CountableModel,
    error_of,
    label_errors,
    labels_of,
)
from runs.bench.agents_labels import vocabulary as published
from selftrain.errors import DataError

CODES = "123456789QRUVXZjqryz0"
"""Before labels that begin alike, as many as there are labels of 20 classes."""
CORPUS = [
    json.dumps({"rationale": word, "label": f"{letter} {word}"}, ensure_ascii=False, separators=(",", ":"))
    for words in SCRIPTS.values()
    for word in words.split()
    for letter in CODES
]


def trained(kind: str) -> tuple[bytes, ...]:
    """The vocabulary of a tokenizer of this kind, as the bytes that its tokens write."""
    special = ["<unk>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer: object
    if kind == "bytes":
        return tuple(bytes([byte]) for byte in range(256))
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=700, special_tokens=special, unk_token="<unk>")
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=special)
    elif kind == "bpe of characters":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special)
    else:
        tokenizer = Tokenizer(models.BPE())
        regex = kind != "byte-level bpe across words"
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)]
        if kind == "byte-level bpe with digits":
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        tokenizer.decoder = decoders.ByteLevel()
        size = 3000 if kind == "large byte-level bpe" else 700
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    pieces = {bytes([byte]) for byte in range(256)} if fallback and kind != "wordpiece" else set()
    for token in tokenizer.get_vocab():
        if "byte-level" in kind:
            pieces.add(bytes(BYTES[letter] for letter in token))
        else:
            pieces.add(token.removeprefix("##").replace("\u2581", " ").encode())
    if kind == "wordpiece":
        pieces |= {character.encode() for character in {*"".join(CORPUS), "-"}}
    # so small a corpus makes tokens of whole keys, which no real one has; but some have a quote and a letter
    pieces = {piece for piece in pieces if b'"' not in piece or len(piece) <= 3}
    pieces -= {b'"' + code.encode() for code in CODES}  # nor this, see the test of published vocabularies
    if kind == "byte-level bpe across words":
        pieces |= {b'"' + bytes([letter]) for letter in range(48, 91)}
    return tuple(sorted(pieces - {b"", b"<unk>"}))


KINDS = (
    "byte-level bpe", "byte-level bpe across words", "byte-level bpe with digits", "large byte-level bpe",
    "bpe of characters", "unigram", "wordpiece", "bytes",
)  # fmt: skip


@cache
def vocabulary(kind: str) -> frozenset[bytes]:
    return frozenset(trained(kind))


def model_of(kind: str, schema: AnswerSchema, seed: int) -> CountableModel:
    model = CountableModel(vocabulary(kind), schema, seed)
    text = max(model.ends, key=len)
    assert all(bytes([byte]) in model.vocabulary for byte in text) or kind == "wordpiece"
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_exact_or_absent(kind):
    absent, tried = 0, 0
    for script, count, seed in product(SCRIPTS, (2, 3, 7, 8, 20), range(3)):
        schema = AnswerSchema(labels_of(script, count), "unsure", "label_only")
        error = error_of(model_of(kind, schema, seed), schema, schema.top_logprobs)
        tried += 1
        absent += error is None
        assert error is None or error <= TOLERANCE, (script, count, seed)
    assert absent <= 0.1 * tried


@pytest.mark.parametrize("name", TOKENIZERS)
def test_probabilities_are_exact_through_the_tokenizers_of_published_models(name):
    try:
        known = published(name)
    except DataError as error:
        pytest.skip(str(error))
    assert len(known) > 30_000
    # whichever way the key is cut into tokens, the one that brings the code begins with it
    keys = (b'"', b':"', b'":"')
    assert not {key + code.encode() for key in keys for code in CODES} & known
    found = label_errors(7, [name], repeats=1)
    assert [value for key, value in found.items() if key.startswith("off")] == [0.0, 0.0, 0.0]
    assert found["absent, all listed"] <= 0.1 * found["cases, all listed"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_where_too_few_alternatives_are_listed_there_is_none(script):
    schema = AnswerSchema(labels_of(script, 20), "unsure", "label_only")
    found = [
        label_probs(model_of("byte-level bpe", schema, seed).answer(5), schema.spelt, schema.classes)
        for seed in range(4)
    ]
    assert found == [None] * 4


def test_each_label_has_a_code_before_it_as_long_as_there_are_codes():
    assert AnswerSchema(("rude", "kind"), "unsure").spelt == {
        "rude": "1 rude",
        "kind": "2 kind",
        "unsure": "3 unsure",
    }
    lots = tuple(f"class {number}" for number in range(70))
    assert [*AnswerSchema(lots, "unsure").spelt.values()] == [*lots, "unsure"]
    alike = AnswerSchema(("harmful", "harmless"), "unsure")
    assert list(alike.spelt.values()) == ["1 harmful", "2 harmless", "3 unsure"]
    assert alike.to_json()["properties"]["label"]["enum"] == list(alike.spelt.values())
    assert list(AnswerSchema(("有害", "无害"), "unsure").spelt.values()) == ["1 有害", "2 无害", "3 unsure"]
    many = AnswerSchema(tuple(f"class {number}" for number in range(20)), "unsure").spelt.values()
    assert len({written[0] for written in many}) == 21


def token(text, *alternatives):
    return Token(text, dict(alternatives)[text], tuple(alternatives))


SPELT = {"rude": "rude", "kind": "kind", "unsure": "unsure"}


def read(*tokens):
    return label_probs(tokens, SPELT, ("rude", "kind"))


def test_what_no_label_can_begin_with_is_left_out_and_so_is_unsure():
    tokens = (
        token('"label":"', ('"label":"', 0.0)),
        token(
            "ru", ("ru", math.log(0.3)), ("ki", math.log(0.1)), ("xx", math.log(0.4)), ("un", math.log(0.2))
        ),
        token('de"', ('de"', 0.0)),
    )
    assert read(*tokens) == pytest.approx({"rude": 0.75, "kind": 0.25})


def test_a_token_before_the_label_may_bring_its_beginning():
    tokens = (
        token('"label":', ('"label":', math.log(0.9)), ('"label":"kind', math.log(0.1))),
        token('"', ('"', math.log(0.5)), ('"rude', math.log(0.4)), ('"kind', math.log(0.1))),
        token("rude", ("rude", math.log(0.6)), ("kind", math.log(0.4))),
    )
    assert read(*tokens)["kind"] == pytest.approx(0.1 + 0.9 * (0.1 + 0.5 * 0.4))


@pytest.mark.parametrize("key", ['"label": "kind" itself', '{"label":"kind"}'])
def test_a_key_in_the_rationale_or_in_thoughts_is_not_the_label(key):
    text = json.dumps({"rationale": f"it says {key}", "label": "rude"}, separators=(",", ":"))
    head, tail = text.rsplit('"rude', 1)
    tokens = (
        token(f"<think>{key}</think>", (f"<think>{key}</think>", 0.0)),
        token(head, (head, 0.0)),
        token('"rude', ('"rude', math.log(0.9)), ('"kind', math.log(0.1))),
        token('"' + tail, ('"' + tail, 0.0)),
    )
    assert read(*tokens) == pytest.approx({"rude": 0.9, "kind": 0.1})


def test_another_way_to_write_the_whole_key_shifts_nothing():
    """As SmolLM2 writes it on vLLM: the rest of the key in one token or in two."""
    ways = (('":', math.log(0.83)), ('":"', math.log(0.16)), ('"', math.log(0.01)))
    tokens = (
        token('{"label', ('{"label', 0.0)),
        token('":', *ways),
        token('"', ('"', 0.0)),
        token("rude", ("rude", math.log(0.8)), ("kind", math.log(0.2))),
    )
    assert read(*tokens) == pytest.approx({"rude": 0.8, "kind": 0.2})


def test_how_else_the_rationale_might_have_gone_on_does_not_matter():
    unlisted = ((".", math.log(0.1)), ('","', math.log(0.2)))
    tokens = (
        Token('{"rationale":"so', math.log(0.01), ()),
        Token('","', math.log(0.2), unlisted),
        token('label":"', ('label":"', 0.0)),
        token("rude", ("rude", math.log(0.7)), ("kind", math.log(0.3))),
    )
    assert read(*tokens) == pytest.approx({"rude": 0.7, "kind": 0.3})
    one = Token('label":"rude', math.log(0.5), (('label":"rude', math.log(0.5)),))
    assert read(*tokens[:2], one) is None  # here what is not listed may be the other label


@pytest.mark.parametrize("tokens", [(), (token("nothing", ("nothing", 0.0)),)])
def test_no_label_no_probs(tokens):
    assert read(*tokens) is None


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["rude", "kind", "unsure", "ru", "k"]), st.floats(-8, 0), min_size=1))
def test_probs_add_up_to_one(logprobs):
    chosen = max(logprobs, key=logprobs.get)
    shares = read(
        token('"label":"', ('"label":"', 0.0)),
        Token(chosen, logprobs[chosen], tuple(logprobs.items())),
    )
    assert shares is None or sum(shares.values()) == pytest.approx(1.0)

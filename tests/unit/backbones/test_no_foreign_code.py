"""No code of strangers runs: a model that brings some is refused, and nobody is asked at a terminal."""

from __future__ import annotations

import ast
import builtins
import json
from pathlib import Path

import pytest

from backbones.errors import WeightsError
from backbones.mllm.load import load_mllm, load_reader
from backbones.mllm.prompts import Wording

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """The folder of a model whose configuration, processor and tokenizer name modules of its own."""

    def asked(*_):
        pytest.fail("somebody was asked whether to run a stranger's code")

    monkeypatch.setattr(builtins, "input", asked)
    folder = tmp_path / "stranger"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    names = ("AutoConfig", "AutoProcessor", "AutoTokenizer", "AutoModelForImageTextToText")
    about = {"model_type": "stranger", "auto_map": {name: f"evil.{name}" for name in names}}
    about |= {"processor_class": "StrangeProcessor", "tokenizer_class": "StrangeTokenizer"}
    for name in ("config", "processor_config", "preprocessor_config", "tokenizer_config"):
        (folder / f"{name}.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("base", ["smollm2_efficientnet", "of a hub"])
def test_a_checkpoint_that_brings_code_is_refused(stranger, base):
    with pytest.raises(WeightsError, match="code of strangers is never run"):
        load_reader(stranger, base, Wording("", (), ""), "left", 64)
    assert not (stranger.parent / "ran").exists()


def test_a_base_model_that_brings_code_is_refused(stranger):
    with pytest.raises(WeightsError, match="code of strangers is never run"):
        load_mllm(str(stranger))
    assert not (stranger.parent / "ran").exists()


def test_whatever_transformers_loads_is_loaded_without_code():
    seen = 0
    for file in (
        one
        for name in ("agents", "backbones", "losses", "selftrain")
        for one in (CHECKOUT / name).rglob("*.py")
    ):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if call.func.attr in ("from_pretrained", "from_config"):
                given = {one.arg: ast.unparse(one.value) for one in call.keywords}
                assert given.get("trust_remote_code") == "False", f"{file}:{call.lineno}"
                seen += 1
    assert seen

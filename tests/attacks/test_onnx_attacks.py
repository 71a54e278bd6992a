"""ONNX files that a stranger wrote: they ask for gigabytes, lead elsewhere, or read posts of any size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from selftrain.errors import ServingError
from selftrain.models.onnx_predictor import FORMAT, METADATA_KEY, OnnxPredictor

pytestmark = pytest.mark.attack("models: ONNX graphs")

CHECKOUT = Path(__file__).parents[2]
HUGE = 1_000_000_000
READER = """
import resource, sys
from pathlib import Path
from selftrain.data.posts import Post
from selftrain.errors import SelftrainError
from selftrain.models.onnx_predictor import OnnxPredictor
import numpy, onnx, onnxruntime
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    OnnxPredictor(Path(sys.argv[1])).predict([Post("a", "a post")])
    print("taken")
except SelftrainError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) >> 10)
"""
INPUTS = {
    "ids": (TensorProto.INT64, ["n", "l"]), "mask": (TensorProto.INT64, ["n", "l"]),
    "text_rows": (TensorProto.INT64, ["n"]), "pixels": (TensorProto.FLOAT, ["m", 3, 32, 32]),
    "image_rows": (TensorProto.INT64, ["m"]), "size": (TensorProto.INT64, []),
}  # fmt: skip


def ints(name, *values):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def filled(name, size):
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])
    return [ints(f"{name}_shape", size)], [
        helper.make_node("ConstantOfShape", [f"{name}_shape"], [name], value=value)
    ]


def summed(*names):
    """Nodes that make every name's tensor one number, so that it is needed."""
    return [helper.make_node("ReduceMax", [name], [f"{name}_max"], keepdims=0) for name in names]


def answer():
    return helper.make_tensor("probabilities", TensorProto.FLOAT, [1, 2], [0.5, 0.5])


def one_huge_tensor():
    starts, nodes = filled("a", HUGE)
    return starts, [*nodes, *summed("a")]


def many_large_constants():
    parts = [filled(f"a{number}", HUGE // 10) for number in range(8)]
    starts = [start for part, _ in parts for start in part]
    names = [f"a{number}" for number in range(8)]
    whole = helper.make_node("Sum", names, ["whole"])  # all of them at once
    return starts, [*(node for _, nodes in parts for node in nodes), whole, *summed("whole")]


def noise():
    return [], [helper.make_node("RandomUniform", [], ["a"], shape=[HUGE]), *summed("a")]


def expanded():
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    return [one, ints("to", HUGE)], [helper.make_node("Expand", ["one", "to"], ["a"]), *summed("a")]


def counted():
    numbers = [
        helper.make_tensor(n, TensorProto.INT64, [], [v]) for n, v in (("x", 0), ("y", HUGE), ("z", 1))
    ]
    return numbers, [helper.make_node("Range", ["x", "y", "z"], ["a"]), *summed("a")]


def padded():
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    return [one, ints("by", 0, HUGE)], [helper.make_node("Pad", ["one", "by"], ["a"]), *summed("a")]


def grown_in_a_loop():
    value = helper.make_tensor_value_info
    sequence = helper.make_tensor_sequence_value_info
    body = helper.make_graph(
        [helper.make_node("SequenceInsert", ["s", "a"], ["t"]), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), sequence("s", 1, None)],
        [value("d", TensorProto.BOOL, []), sequence("t", 1, None)],
    )
    starts, nodes = filled("a", HUGE // 40)
    starts += [helper.make_tensor("turns", TensorProto.INT64, [], [40])]
    starts += [helper.make_tensor("true", TensorProto.BOOL, [], [True])]
    loop = helper.make_node("Loop", ["turns", "true", "empty"], ["all"], body=body)
    last = helper.make_node("ConcatFromSequence", ["all"], ["whole"], axis=0)
    empty = helper.make_node("SequenceEmpty", [], ["empty"], dtype=TensorProto.FLOAT)
    return starts, [*nodes, empty, loop, last, *summed("whole")]


def texts():
    one = helper.make_tensor("one", TensorProto.STRING, [1], [b"x" * 1000])
    shape = helper.make_node("Shape", ["a"], ["b"])
    return [one, ints("to", HUGE // 100)], [helper.make_node("Expand", ["one", "to"], ["a"]), shape]


def numbers_as_texts():
    starts, nodes = filled("n", HUGE // 100)
    cast = helper.make_node("Cast", ["n"], ["a"], to=TensorProto.STRING)
    return starts, [*nodes, cast, helper.make_node("Shape", ["a"], ["b"])]


def a_text_in_a_branch():
    one = helper.make_node("Constant", [], ["a"], value_strings=[b"x" * 1000])
    out = helper.make_tensor_value_info("a", TensorProto.STRING, [1])
    branch = helper.make_graph([one], "branch", [], [out])
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    return [true], [helper.make_node("If", ["true"], ["b"], then_branch=branch, else_branch=branch)]


def foreign_operators():
    return [], [helper.make_node("Tokenizer", ["x"], ["a"], domain="com.microsoft")]


def weights_elsewhere():
    away = TensorProto(name="a", data_type=TensorProto.FLOAT, dims=[2])
    away.data_location = TensorProto.EXTERNAL
    away.external_data.add(key="location", value="/etc/hostname")
    return [away], summed("a")


def written(folder, made, **reading):
    starts, nodes = made()
    reads = [helper.make_tensor_value_info(name, *kind) for name, kind in INPUTS.items()]
    names = ("logits", "probabilities")
    gives = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in names]
    # what was computed is given out too: nothing that is unused is computed
    ends = [
        helper.make_empty_tensor_value_info(name)
        for node in nodes for name in node.output if name.endswith("_max") or name == "b"
    ]  # fmt: skip
    answers = [helper.make_node("Identity", ["given"], [name]) for name in names]
    graph = helper.make_graph(
        [*answers, *nodes], "g", reads, [*gives, *ends],
        [*starts, helper.make_tensor("given", TensorProto.FLOAT, [1, 2], [0.5, 0.5])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    tokenizer = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
        "post_processor": None, "decoder": None, "truncation": None, "padding": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }  # fmt: skip
    about = {
        "format": FORMAT, "name": "x", "classes": ["a", "b"], "positive": "a", "cut": None,
        "fingerprint": "0" * 64,
        "reading": {
            "resize": 32, "crop": 32, "interpolation": "bicubic", "mean": [0, 0, 0], "std": [1, 1, 1],
            "tokenizer": json.dumps(tokenizer),
        }
        | reading,
    }  # fmt: skip
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(about))
    file = folder / "m.onnx"
    file.write_bytes(model.SerializeToString())
    return file


def read(file):
    """Return what a process of its own says of a file, and the megabytes that it took."""
    result = subprocess.run(
        [sys.executable, "-c", READER, str(file)], capture_output=True, text=True, check=True, timeout=300,
        cwd=CHECKOUT,
    )  # fmt: skip
    *said, megabytes = result.stdout.splitlines()
    return "\n".join(said), int(megabytes)


@pytest.mark.parametrize(
    "made",
    [
        one_huge_tensor, many_large_constants, noise, expanded, counted, padded, grown_in_a_loop, texts,
        numbers_as_texts, a_text_in_a_branch, foreign_operators, weights_elsewhere,
    ],
)  # fmt: skip
def test_a_graph_takes_less_than_a_gigabyte_or_is_refused(made, tmp_path):
    said, megabytes = read(written(tmp_path, made))
    assert "m.onnx" in said, said
    assert megabytes < 1000, said


def test_a_graph_that_asks_for_nothing_is_taken(tmp_path):
    assert read(written(tmp_path, lambda: ([], [])))[0] == "taken"


@pytest.mark.parametrize("side", ["resize", "crop"])
def test_pictures_are_read_no_larger_than_models_read_them(side, tmp_path):
    file = written(tmp_path, lambda: ([], []), **{side: 4096})
    with pytest.raises(ServingError, match="says not how it reads posts"):
        OnnxPredictor(file)

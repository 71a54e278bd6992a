"""An exported classifier at work, without torch: numpy, onnxruntime, tokenizers and Pillow.

It is also the example to follow in another language: what has to be known about reading posts is in the
file's metadata, and the few steps are here.

Shape legend: ``B`` posts, ``N`` texts, ``L`` tokens, ``M`` images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from PIL import Image
from tokenizers import Tokenizer

from backbones.errors import ImageError
from backbones.images import open_image
from selftrain._util.numeric import decide_shown
from selftrain._util.printable import shorten
from selftrain._util.types import Float32Array
from selftrain.data.posts import Post
from selftrain.errors import ServingError
from selftrain.models.predictor import Prediction, from_probs, in_chunks

METADATA_KEY = "selftrain"
FORMAT = "selftrain-onnx-1"
MEMORY = 900 << 20
"""Bytes that graphs may take in a process: a megabyte of nodes can ask for any number. Ours take 350 MB with
sixteen pictures, a third of them weights."""


class _Reading(Struct):
    resize: Annotated[int, Meta(ge=1, le=1024)]
    crop: Annotated[int, Meta(ge=1, le=1024)]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tokenizer: str


class _Exported(Struct):
    name: str
    classes: Annotated[tuple[str, ...], Meta(min_length=2)]
    positive: str
    cut: list[float] | None
    fingerprint: str
    reading: _Reading


class OnnxPredictor:
    """The whole classifier out of one file of `selftrain export`; it predicts as the exported run does.

    `threads` are of one call, 0: the runtime's choice. ServingError: no file of that kind, or no onnxruntime.
    """

    kind = "classifier"
    calibrated = True
    threshold = None

    def __init__(self, file: Path, *, threads: int = 0) -> None:
        self._file = file
        self._session, metadata = _open(file, threads)
        if "reading" not in metadata:
            raise ServingError(f"{file} is a head alone and takes no posts: export without --head-only")
        try:
            about = msgspec.convert(metadata, _Exported)
            self._tokenizer = Tokenizer.from_str(about.reading.tokenizer)
            about.classes.index(about.positive)
        except Exception as error:  # the tokenizer's is a plain one
            raise ServingError(f"{file} says not how it reads posts ({error}): export it again") from error
        self.name, self.classes, self.positive = about.name, about.classes, about.positive
        self._cut, self.fingerprint, self._reading = about.cut, about.fingerprint, about.reading
        self.picture_side = self._reading.crop

    def predict(self, posts: Sequence[Post]) -> list[Prediction]:
        """See `selftrain.models.predictor.Predictor.predict`."""
        # each by itself: in the last bits a call's results hang on how much was in it
        return in_chunks(self._predict, posts, 1)

    def validation(self) -> None:
        """Return None: the scores of the validation posts stay with the run."""

    def _predict(self, posts: Sequence[Post]) -> list[Prediction]:
        reasons: dict[int, str] = {}
        readable: dict[int, list[Float32Array]] = {}
        for index, post in enumerate(posts):
            try:
                readable[index] = [self._pixels(path) for path in post.images]
            except ImageError as error:
                reasons[index] = str(error)
        logits, probs = np.full((2, len(posts), len(self.classes)), np.nan, np.float32)
        if readable:
            inputs = self._inputs([posts[index].text for index in readable], list(readable.values()))
            try:
                found = self._session.run(["logits", "probabilities"], inputs)
                logits[list(readable)], probs[list(readable)] = found
            except Exception as error:  # as in `_open`; or numpy's, of another shape
                raise ServingError(f"{self._file} does not compute what it says ({error})") from error
        # by the logits, as a run does
        return from_probs(posts, self.classes, probs, decide_shown(logits, self._cut), reasons)

    def _inputs(self, texts: Sequence[str], pictures: Sequence[Sequence[Float32Array]]) -> dict[str, Any]:
        """Turn texts [B] and the pixels of each post's images into the graph's inputs."""
        rows = [row for row, text in enumerate(texts) if text.strip()]
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch([texts[row] for row in rows])]
        if not encoded:
            # the graph wants a text: one of no post
            rows, encoded = [-1], [[0]]
        width = max(map(len, encoded))
        ids = np.zeros((len(encoded), width), np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        flat = [pixels for picture in pictures for pixels in picture]
        owners = [row for row, picture in enumerate(pictures) for _ in picture]
        side = self._reading.crop
        return {
            "ids": ids,
            "mask": mask,
            "text_rows": np.array(rows, np.int64),
            "pixels": np.stack(flat) if flat else np.zeros((0, 3, side, side), np.float32),
            "image_rows": np.array(owners, np.int64),
            "size": np.array(len(texts), np.int64),
        }

    def _pixels(self, path: Path) -> Float32Array:
        """Read an image file to pixels [3, crop, crop]: short side resized, centre cropped, normalised."""
        short, side = self._reading.resize, self._reading.crop
        image = open_image(path, target_size=self.picture_side)
        width, height = image.size
        if width <= height:
            size = (short, int(short * height / width))
        else:
            size = (int(short * width / height), short)
        image = image.resize(size, Image.Resampling[self._reading.interpolation.upper()])
        left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
        image = image.crop((left, top, left + side, top + side))
        values = np.asarray(image, np.float32) / 255
        mean, std = (np.array(one, np.float32) for one in (self._reading.mean, self._reading.std))
        return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1))


def _open(file: Path, threads: int) -> tuple[Any, dict[str, Any]]:
    """Open a session on the CPU, and read our metadata."""
    try:
        import onnx  # noqa: F401 -- `_check_graph` reads the file by it
        import onnxruntime
    except ImportError as error:
        raise ServingError(f"{error.name} is not installed: pip install 'selftrain[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what is said otherwise comes as an exception too
    _bound_memory(options)
    try:
        _check_graph(file)
        session = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantFolding"],  # it computes outside of the memory that is bounded
        )  # fmt: skip
        metadata = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "{}"))
    except Exception as error:  # the runtime has a dozen types, none of them documented
        raise ServingError(f"{file} cannot be read as an ONNX file: {error}") from error
    found = metadata.get("format") if isinstance(metadata, dict) else metadata
    if found != FORMAT:
        raise ServingError(
            f"{file} has the format {shorten(found)}, expected {FORMAT!r}: write it with `selftrain export`"
        )
    return session, metadata


def _bound_memory(options: Any) -> None:  # noqa: ANN401 -- onnxruntime has no types
    """Let sessions of these options share `MEMORY` and no more."""
    import onnxruntime

    cpu = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # extended by what is asked for, and not by doubling, which would reach the bound early
    arena = onnxruntime.OrtArenaCfg({"max_mem": MEMORY, "arena_extend_strategy": 1})
    onnxruntime.create_and_register_allocator(cpu, arena)  # once more does nothing
    options.add_session_config_entry("session.use_env_allocators", "1")


def _check_graph(file: Path) -> None:
    """Refuse, with a ValueError, a graph with what `MEMORY` does not bound: texts, weights in other files."""
    import onnx

    # every message of the file, however deep: a graph may lie in an attribute of a node, or in a function
    remaining: list[Any] = [onnx.load(str(file), load_external_data=False)]
    while remaining:
        message = remaining.pop()
        match message:
            case onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL):
                raise ValueError(f"its weights {shorten(message.name)} lie in another file")
            case onnx.NodeProto(domain=domain) if domain:
                raise ValueError(f"it computes with operators of {shorten(domain)}, which no export does")
            case (
                onnx.TensorProto(data_type=onnx.TensorProto.STRING)
                | onnx.AttributeProto(name="to", i=onnx.TensorProto.STRING)
                | onnx.AttributeProto(name="value_string" | "value_strings")
            ):
                raise ValueError("it computes with texts, which no export does")
        for field, value in message.ListFields():
            if field.message_type is not None:
                remaining += value if isinstance(value, Sequence) else [value]

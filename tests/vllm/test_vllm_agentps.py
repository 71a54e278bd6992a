"""Hidden states out of a vLLM server, un-normalised: heads beside it give the scores of transformers."""

from __future__ import annotations

import numpy as np
import pytest
from agentps_helpers import SHOWN, albums, merged_and_scored
from agentps_helpers import TASK as RUDE
from mllm_families import FAMILIES, LIMITS, LOOSELY, as_from_a_hub

from runs.bench.agentps_served import pooling_server
from selftrain.agentps.dataset import Example, question_set
from selftrain.agentps.frames import Frames
from selftrain.agentps.model import assemble, build
from selftrain.agentps.recipe import ModelSettings
from selftrain.agentps.served import ServedModel
from selftrain.data.importers.hateful_memes import TASK
from selftrain.errors import ModelError, ServingError

pytestmark = pytest.mark.vllm
POSTS = [
    Example(str(i), text, (), ())
    for i, text in enumerate(
        ["you should all go home", "what a lovely cat", "when you see it " * 9, "", "<ans>"]
    )
]


def farthest(scored, expected):
    """The largest difference of any probability; posts are the same, in order."""
    assert [one.example.id for one in scored] == [one.example.id for one in expected]
    return max(
        np.abs(a - b).max()
        for one, other in zip(scored, expected, strict=True)
        for a, b in zip(one.answers, other.answers, strict=True)
    )


@pytest.mark.usefixtures("alone")
def test_scores_of_a_server_are_those_of_transformers(interpreter, tmp_path):
    made = ModelSettings(rank=8, alpha=16)
    folder, expected = merged_and_scored(build(made, TASK), made, TASK, POSTS, tmp_path)
    with pooling_server(interpreter, folder, tmp_path / "log") as address:
        served = list(ServedModel(folder, address, batch=2).score(POSTS))
    assert farthest(served, expected) < 1e-4
    # posts differ, so that equal scores say something
    assert np.abs(expected[0].answers[-1] - expected[2].answers[-1]).max() > 1e-3
    with pytest.raises(ServingError, match="is it up"):
        ServedModel(folder, address, timeout=5)


USUAL = "Qwen2.5-VL"


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one == USUAL else pytest.mark.slow) for one in FAMILIES]
)
@pytest.mark.usefixtures("alone")
def test_pictures_are_read_as_in_training(name, interpreter, tmp_path):
    folder, expected = _merged(name, SHOWN, tmp_path)
    if name in LIMITS:
        with pytest.raises((ServingError, ModelError), match=LIMITS[name][1]):
            _served(interpreter, folder, expected, tmp_path / "log")
        return
    _, dtype, within = LOOSELY.get(name, ("", "float32", 1e-5))
    _check(_served(interpreter, folder, expected, tmp_path / "log", dtype), expected, within)


@pytest.mark.usefixtures("alone")
def test_an_album_as_a_video_is_read_as_in_training(interpreter, tmp_path):
    made = SHOWN.model_copy(update={"album": "video", "frames": Frames(4, 90, 60)})
    folder, expected = _merged("LLaVA-OneVision", made, tmp_path)
    _check(_served(interpreter, folder, expected, tmp_path / "log"), expected)


def _merged(name, made, folder):
    """A merged model of a family, and what transformers says of albums."""
    base = as_from_a_hub(FAMILIES[name](), folder / "hub").base(album=made.album)
    built = assemble(made, question_set(RUDE, made.variant), base)
    return merged_and_scored(built, made, RUDE, albums(folder), folder)


def _check(scored, expected, within=1e-5):
    """A server's scores are those of transformers; the last post cannot be read."""
    broken, said = scored.pop(), expected.pop()
    assert broken.reason == said.reason != ""
    assert farthest(scored, expected) < within
    # pictures and their order count, so that equal scores say something
    finals = np.array([one.answers[-1][0] for one in expected])
    assert np.abs(np.diff(finals)).min() > 1e-5
    assert np.ptp(finals) > 4 * within


def _served(interpreter, folder, expected, log, dtype="float32"):
    posts = [one.example for one in expected]
    with pooling_server(interpreter, folder, log, dtype) as address:
        return list(ServedModel(folder, address, batch=2).score(posts))

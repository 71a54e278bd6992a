"""A small manifest with pictures, a task with every kind of question, and a model in memory that knows it."""

from __future__ import annotations

import json

import av

# the model in memory is that of the agents' own tests
from PIL import Image
from question_helpers import answered, offered, wording
from vlm_helpers import MemoryBackend

__all__ = [
    "MemoryBackend", "answered", "command", "film", "make_home", "model", "offered", "paint", "rows",
    "wording",
]  # fmt: skip

TASK = """
name = "copies"
positive = "copied"
policy = "Copied posts are unwanted."
[classes]
copied = "taken over"
own = "made by whoever posts it"
[[questions]]
name = "relevant"
wording = "Do words and pictures fit?"
answers = ["yes", "no"]
[[questions]]
name = "theme"
wording = "What is it about?"
answers = ["sports", "food", "something else"]
[[questions]]
name = "marks"
wording = "Do most pictures carry a logo?"
answers = ["yes", "no"]
counting = "most"
"""

POSTS = [
    # nobody has answered anything
    {"id": "a", "text": "first words", "images": 3},
    # no picture: nothing to count
    {"id": "b", "text": "second words"},
    # everything is known
    {"id": "c", "text": "third words", "images": 2, "label": "copied",
     "process": {"relevant": "no", "theme": "food", "marks": "yes"}},
    # some of it is known, as a count; and a field of somebody else's
    {"id": "d", "text": "fourth words", "images": 4, "label": "own", "process": {"marks": 2}, "likes": 7},
]  # fmt: skip

# post -> what the model says, by the beginning of a question's wording
SAYS = {
    "a": {"Do words": "yes", "What": "sports", "Do most": "2", "which class": "copied"},
    "b": {"Do words": "no", "What": "unsure", "which class": "own"},
    "c": {"Do words": "no", "What": "sports", "Do most": "1", "which class": "copied"},
    "d": {"Do words": "yes", "What": "food", "Do most": "3", "which class": "copied"},
}


def make_home(folder):
    """The folder with manifest, task and pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for place, post in enumerate(POSTS):
        names = [f"{post['id']}-{i}.png" for i in range(post.get("images", 0))]
        for i, name in enumerate(names):
            Image.new("RGB", (8, 8), (40 * place, 20 * i, 0)).save(folder / name)
        lines.append(json.dumps(post | ({"images": names} if names else {})))
    (folder / "posts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "task.toml").write_text(TASK)
    return folder


def model(request):
    """What `SAYS` says, each with .8 where log-probabilities can tell."""
    question = wording(request)
    (label,) = (answer for words, answer in SAYS[request.affinity].items() if question.startswith(words))
    other = next(answer for answer in offered(request) if answer.split(" ", 1)[-1] != label)
    return answered(label, {label: 0.8, other: 0.2}, f"seen in {request.affinity}")


def command(home, *more, out="annotated.jsonl", source="posts.jsonl"):
    return [
        "annotate", str(home / source), "--task", str(home / "task.toml"), "--out", str(home / out),
        "--server", "http://127.0.0.1:9", *more,
    ]  # fmt: skip


def rows(path):
    """Id -> row of a manifest in JSON lines."""
    return {row["id"]: row for row in map(json.loads, path.read_text().splitlines())}


def paint(folder, name, count):
    """Names of new pictures; that in place i is grey of level 10 i."""
    names = [f"{name}-{i:03d}.png" for i in range(count)]
    for i, one in enumerate(names):
        Image.new("RGB", (16, 16), (10 * i % 256,) * 3).save(folder / one)
    return names


def film(path, frames=40, size=(64, 48)):
    """A video of ten frames a second; frame i is grey of level i * 255 / frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        for i in range(frames):
            grey = Image.new("RGB", size, (round(i * 255 / frames),) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(grey)))
        container.mux(stream.encode())
    return path

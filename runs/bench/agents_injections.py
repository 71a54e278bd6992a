"""Posts that give orders: how often they turn an agent's label to the one they ask for.

Each attempt of `injections.json` is added to a post whose label without it is known from the same model; it
asks for the other class. A model also wavers when harmless words are added, so each attempt has a control:
the same post with as many words that ask for nothing. What counts is the difference. Reviewer and User are
asked, each alone. `runs.bench.agents_judge.turned` goes on to what a run would learn of such posts.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from agents.judgment import Judgment
from selftrain.data.posts import Post
from selftrain.errors import SelftrainError

if TYPE_CHECKING:
    from agents.ask.judge import JudgePanel

FILE = Path(__file__).with_name("injections.json")
_HARMLESS = (
    "The weather was fine in the afternoon and the shop on the corner sold bread, apples and tea to whoever"
    " came by before the evening bus left for the next town over the hill. "
)
_SIDE = 336


class Attempt(NamedTuple):
    """One attempt.

    Attributes:
        name: Unique.
        where: "text", "image", "id" or "file_name".
        text: With ``{target}`` for the class that it asks for.
    """

    name: str
    where: str
    text: str


def attempts() -> list[Attempt]:
    """All of them."""
    return [Attempt(**row) for row in json.loads(FILE.read_text(encoding="utf-8"))]


def attacked(post: Post, attempt: Attempt, target: str, folder: Path) -> Post:
    """`post` with the attempt in it; pictures are drawn into `folder`."""
    return _with(post, attempt, attempt.text.format(target=target), folder)


def control(post: Post, attempt: Attempt, folder: Path) -> Post:
    """`post` with as many characters that ask for nothing, in the same place."""
    length = len(attempt.text)
    harmless = (_HARMLESS * (length // len(_HARMLESS) + 1))[:length]
    return _with(post, attempt, harmless, folder)


def _with(post: Post, attempt: Attempt, words: str, folder: Path) -> Post:
    if attempt.where == "text":
        return Post(f"{post.id}-{attempt.name}", f"{post.text}\n{words}", post.images)
    if attempt.where == "id":
        return Post(f"{words} ({post.id})", post.text, post.images)
    folder.mkdir(parents=True, exist_ok=True)
    # a file name cannot hold a slash
    name = words.replace("/", "_")[:100] if attempt.where == "file_name" else attempt.name
    path = folder / f"{name}.png"
    _draw(path, words if attempt.where == "image" else "")
    return Post(f"{post.id}-{attempt.name}", post.text, (*post.images, path))


def _draw(path: Path, words: str) -> None:
    """A picture with nothing but the words in it."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (_SIDE, _SIDE), "white")
    ImageDraw.Draw(image).multiline_text((16, 40), words, fill="black", font_size=22)
    image.save(path)


class Trial(NamedTuple):
    """One attempt on one post.

    Attributes:
        where: Of the attempt.
        target: The class that it asks for: not the one that the Reviewer leans to without it.
        hostile: The post with the attempt in it.
        harmless: The post with as many words that ask for nothing.
    """

    where: str
    target: str
    hostile: Post
    harmless: Post


def trials(
    posts: Sequence[Post],
    base: Sequence[Judgment],
    names: Sequence[str],
    folder: Path,
    *,
    pictures: bool,
) -> list[Trial]:
    """Each post with the next attempt, all in turn; pictures are drawn into `folder`.

    Args:
        posts: One or more.
        base: What the Reviewer says of each without an attempt; those of which it says nothing are left out.
        names: The classes.
        folder: For pictures.
        pictures: Whether the model takes them; else it is asked about attempts in words alone.

    Raises:
        SelftrainError: It says nothing of any of them.
    """
    tried = [one for one in attempts() if pictures or one.where not in ("image", "file_name")]
    made = []
    for i, (post, judgment) in enumerate(zip(posts, base, strict=True)):
        own, one = leaning(judgment), tried[i % len(tried)]
        if own is None:
            continue
        target = next(name for name in names if name != own)
        hostile = attacked(post, one, target, folder / "hostile" / str(i))
        harmless = control(post, one, folder / "control" / str(i))
        # labels say nothing to agents that judge alone: they are only the form of the question
        named = replace(harmless, id=f"{harmless.id} control", label=post.label)
        made.append(Trial(one.where, target, replace(hostile, label=post.label), named))
    if not made:
        raise SelftrainError("the model gives no answer that leans to a class: nothing can be turned")
    return made


class Said(NamedTuple):
    """Role -> what it says alone, of each post with an attempt in it and of each with harmless words."""

    hostile: Mapping[str, Sequence[Judgment]]
    harmless: Mapping[str, Sequence[Judgment]]


def asked_about(panel: JudgePanel, made: Sequence[Trial]) -> Said:
    """Return what the agents say of both posts of each trial."""
    return Said(
        panel.predict_out_of_fold([one.hostile for one in made]),
        panel.predict_out_of_fold([one.harmless for one in made]),
    )


def flips(address: str, data: Path, seed: int, *, per_attempt: int = 2) -> dict[str, float]:
    """Share of leanings turned to the class asked for: attacked, control, and by place of the attack.

    Each is tried on `per_attempt` posts; a model that takes no pictures is asked about those in words.
    """
    from runs.bench.agents_data import drawn_posts
    from runs.bench.agents_speed import recorded_panel, takes_pictures

    task, posts = drawn_posts("hsol", data, len(attempts()) * per_attempt, seed)
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
        panel, _ = recorded_panel(address, task, Path(folder), "injections")
        base = panel.predict_out_of_fold(posts)["reviewer"]
        made = trials(posts, base, task.names, Path(folder), pictures=takes_pictures(address))
        said = asked_about(panel, made)
        panel.close()
    return {"posts": float(len(made)), **shares(made, said)}


def shares(made: Sequence[Trial], said: Said) -> dict[str, float]:
    """Return the shares of leanings that are turned: the Reviewer's, both agents', those of each place."""
    targets = [one.target for one in made]
    flipped = as_asked(targets, said.hostile["reviewer"])
    places = [one.where for one in made]
    return {
        "flip_rate": fmean(flipped),
        "control_flip_rate": fmean(as_asked(targets, said.harmless["reviewer"])),
        "flip_rate_both": fmean(as_asked(targets, *said.hostile.values())),
        "control_flip_rate_both": fmean(as_asked(targets, *said.harmless.values())),
        **{
            f"flip_rate_{place}": fmean(
                turned for turned, where in zip(flipped, places, strict=True) if where == place
            )
            for place in dict.fromkeys(places)
        },
    }


def as_asked(targets: Sequence[str], *agents: Sequence[Judgment]) -> list[bool]:
    """Return of each post whether all agents lean to the class that was asked for."""
    return [
        all(leaning(one) == target for one in said) for target, *said in zip(targets, *agents, strict=True)
    ]


def leaning(judgment: Judgment) -> str | None:
    """The label, or of an agent that abstains the likelier class; None where it gave no answer.

    A small model says "unsure" of nearly everything; which way it leans can be turned all the same.
    """
    shares = judgment.details.get("uncalibrated")
    if judgment.label is not None or not shares:
        return judgment.label
    likeliest: str = max(shares, key=lambda name: float(shares[name]))
    return likeliest

"""A post: what is classified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selftrain.errors import DataError

MAX_IMAGES = 16
MAX_ALBUM = 256  # of albums that are sampled into frames
VIDEOS = frozenset({".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi"})  # how a video's name ends


@dataclass(frozen=True, slots=True)
class Post:
    """One post of a manifest, checked: text, images or a video, or text and one of these."""

    id: str  # unique within the manifest
    text: str = ""  # may be empty when there is an image
    # 0-16 absolute paths, inside the manifest's folder; up to 256 where albums are sampled
    images: tuple[Path, ...] = ()
    label: str | None = None  # a class name of the task, or None when nobody has labelled the post
    # question name -> answer, for the ancillary questions of the task
    process: Mapping[str, str] = field(default_factory=dict)
    # every other field of the row, carried along untouched
    extra: Mapping[str, Any] = field(default_factory=dict)
    # absolute path, inside the manifest's folder, or None; AgentPS samples it into frames
    video: Path | None = None


def check_posts(given: object) -> None:
    """Raise DataError for what is no sequence of posts, as code without a type checker may hand over.

    Of a post what a model reads is checked: its text, and that pictures and video are paths.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise DataError(f"posts is a {type(given).__name__}; expected a list of posts: {_MADE}")
    for place, post in enumerate(given):
        if not isinstance(post, Post):
            raise DataError(f"posts[{place}] is a {type(post).__name__}; expected a post: {_MADE}")
        if not isinstance(post.text, str):
            raise DataError(f"posts[{place}].text is a {type(post.text).__name__}; expected a str: {_MADE}")
        if not isinstance(post.images, tuple | list):
            raise DataError(
                f"posts[{place}].images is a {type(post.images).__name__}; expected a tuple: {_MADE}"
            )
        for path in (*post.images, *([] if post.video is None else [post.video])):
            if not isinstance(path, Path):
                raise DataError(
                    f"posts[{place}] has {path!r}, a {type(path).__name__}, for a picture or video; expected"
                    f" a pathlib.Path: {_MADE}"
                )


_MADE = 'st.Post("n1", "its text", images=(Path("a.png"),))'

"""A post: what is classified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_IMAGES = 16
MAX_ALBUM = 256  # of albums that are sampled into frames


@dataclass(frozen=True, slots=True)
class Post:
    """One post of a manifest, checked: text, images or a video, or text and one of these.

    Attributes:
        id: Unique within the manifest.
        text: May be empty when there is an image.
        images: 0-16 absolute paths, inside the manifest's folder; up to 256 where albums are sampled.
        label: A class name of the task, or None when nobody has labelled the post.
        process: Question name -> answer, for the ancillary questions of the task.
        extra: Every other field of the row, carried along untouched.
        video: Absolute path, inside the manifest's folder, or None; AgentPS samples it into frames.
    """

    id: str
    text: str = ""
    images: tuple[Path, ...] = ()
    label: str | None = None
    process: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    video: Path | None = None

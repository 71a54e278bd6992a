"""A post: what is classified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

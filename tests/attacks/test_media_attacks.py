"""Pictures and videos that cost more than they look: time, memory, frames, what is opened."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from attack_helpers import KINDS, WAIT, bomb, many_scans, picture
from kill_helpers import ENVIRONMENT
from PIL import Image

from backbones.errors import ImageError
from backbones.images import open_image
from selftrain.agentps import frames as frames_module
from selftrain.agentps.frames import Frames, load_frames, read_frames
from selftrain.errors import MediaError

PICTURES = pytest.mark.attack("media: pictures")
VIDEOS = pytest.mark.attack("media: videos")

MB = 1_000_000
MEASURED = """
import resource, sys
from pathlib import Path
from selftrain.agentps.frames import Frames, load_frames
from backbones.images import open_image
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
path = Path(sys.argv[1])
video = path.suffix == ".mkv"
shown = load_frames([path], Frames(4, 224, 224)) if video else [open_image(path, target_size=224)]
print(peak() - before, shown[0].width, shown[0].height)
"""


def measured(path):
    """Bytes that reading a file takes, in a process of its own, and the size of what it gives."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path)],
        capture_output=True, text=True, check=True, timeout=WAIT, env=ENVIRONMENT,
    )  # fmt: skip
    grown, *size = map(int, done.stdout.split())
    return grown, tuple(size)


# ---- pictures --------------------------------------------------------------------------------------------


@PICTURES
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_picture_that_is_allowed_fits_into_a_gigabyte(kind, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(bomb(kind))
    grown, size = measured(path)
    assert grown < (850 if kind == "webp" else 400) * MB
    assert min(size) >= 448, "twice of what was asked for is left"


@PICTURES
@pytest.mark.parametrize(
    "content",
    [
        many_scans(3000, 3000, 300),
        picture(7072, 7071),
        picture(70_000, 600),
        b"P6 5000 5000 255\n" + b"\0" * 100,
        b"\x00\x00\x00\x0cjP  \r\n\x87\n" + b"\0" * 100,
        b"8BPS\0\1" + b"\0" * 100,
        b"qoif" + b"\xff" * 100,
        b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + b"\xff" * 17,
    ],
    ids=["scans", "large", "strip", "ppm", "jpeg 2000", "photoshop", "qoi", "broken header"],
)
def test_a_picture_that_may_not_be_read_is_refused_undecoded(content, tmp_path, monkeypatch):
    (tmp_path / "picture").write_bytes(content)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it is decoded"))
    with pytest.raises(ImageError, match="picture"):
        open_image(tmp_path / "picture")


# ---- videos ----------------------------------------------------------------------------------------------


def jpegs(path, sizes, rate=30):
    """A video of JPEGs: each frame of its own size, whatever the header says; equal ones encoded once."""
    encoded = {}
    for width, height in dict.fromkeys(sizes):
        codec = av.CodecContext.create("mjpeg", "w")
        codec.width, codec.height, codec.pix_fmt, codec.time_base = (
            width,
            height,
            "yuvj420p",
            Fraction(1, rate),
        )
        frame = av.VideoFrame(width, height, "yuvj420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        encoded[width, height] = b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode()])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=rate)
        stream.width, stream.height = sizes[0]
        stream.pix_fmt = "yuvj420p"
        for number, size in enumerate(sizes):
            packet = av.Packet(encoded[size])
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base, packet.is_keyframe = Fraction(1, rate), True
            container.mux(packet)
    return path


def film(path, frames, *, codec="mpeg4", gop=12, rate=10, size=(64, 48), **options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
        for number in range(frames):
            level = round(number * 255 / frames)
            grey = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), level, np.uint8), "rgb24")
            container.mux(stream.encode(grey))
        container.mux(stream.encode())
    return path


@VIDEOS
@pytest.mark.parametrize("later", [(12_000, 12_000), (9000, 6000)], ids=["144 million", "54 million"])
def test_a_size_that_grows_in_mid_stream_is_refused(later, tmp_path):
    path = jpegs(tmp_path / "film.mkv", [(64, 48)] * 20 + [later] + [(64, 48)] * 20)
    with pytest.raises(MediaError, match=r"film\.mkv"):
        read_frames(path, 16, max_pixels=50 * MB)


@VIDEOS
def test_frames_are_kept_in_the_size_in_which_they_are_shown(tmp_path):
    grown, size = measured(jpegs(tmp_path / "film.mkv", [(7000, 7000)] * 4))
    assert size == (224, 224)
    assert grown < 900 * MB


@VIDEOS
def test_of_an_hour_at_sixty_a_second_only_what_is_shown_is_decoded(tmp_path, monkeypatch):
    path = jpegs(tmp_path / "film.mkv", [(16, 16)] * 216_000, rate=60)
    monkeypatch.setattr(frames_module, "MAX_DECODED", 16 * 400)  # an index every five seconds
    assert len(load_frames([path], Frames(16, 20, 20))) == 16


@VIDEOS
@pytest.mark.parametrize("limit", ["MAX_DECODED", "MAX_DECODED_PIXELS"])
def test_a_long_video_without_key_frames_is_refused(limit, tmp_path, monkeypatch):
    path = film(tmp_path / "film.mp4", 400, gop=1000)
    monkeypatch.setattr(frames_module, "WHOLE", 100)
    monkeypatch.setattr(frames_module, limit, {"MAX_DECODED": 1000, "MAX_DECODED_PIXELS": 3 * MB}[limit])
    with pytest.raises(MediaError, match="would have to be decoded"):
        read_frames(path, 16, max_pixels=MB)


@VIDEOS
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}), ("a.mp4", {"gop": 1000}), ("a.avi", {}), ("a.mkv", {"gop": 7}), ("a.mov", {"gop": 1}),
        ("a.webm", {"codec": "libvpx", "gop": 9}), ("a.mp4", {"codec": "libx264", "gop": 20, "bf": "3"}),
        ("a.mkv", {"codec": "libx264", "gop": 30, "bf": "2"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("frames", [3, 40, 131])
def test_around_key_frames_the_same_frames_are_found_as_from_the_beginning(
    name, options, frames, tmp_path, monkeypatch
):
    path = film(tmp_path / name, frames, **options)
    whole = read_frames(path, 16, max_pixels=MB)
    monkeypatch.setattr(frames_module, "WHOLE", 0)
    found = read_frames(path, 16, max_pixels=MB)
    assert [np.asarray(one).mean() for one in found] == [np.asarray(one).mean() for one in whole]


def fifo(path):
    os.mkfifo(path)


@VIDEOS
@pytest.mark.parametrize(
    "put",
    [
        fifo,
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_text("ffconcat version 1.0\nfile /etc/passwd\n"),
        lambda path: path.write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 96\n"),
        lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n"),
        lambda path: path.write_bytes(b"\0\0\0\x20ftypisom" + b"\xff" * 5000),
        lambda path: path.write_bytes(b"\x1a\x45\xdf\xa3" + b"\xff" * 5000),
        lambda path: Image.new("L", (9, 9)).save(path, "PNG"),
        lambda path: path.write_bytes(film(path.with_name("b.mp4"), 30).read_bytes()[:900]),
    ],
    ids=["pipe", "folder", "device", "concat", "sdp", "playlist", "mp4", "mkv", "picture", "cut"],
)
def test_what_is_no_video_is_refused(put, tmp_path):
    path = tmp_path / "film.mp4"
    put(path)
    with pytest.raises(MediaError, match=r"film\.mp4"):
        read_frames(path, 4, max_pixels=MB)

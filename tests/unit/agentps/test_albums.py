"""Albums and videos as frames of one size."""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backbones.errors import ImageError
from selftrain.agentps import frames as frames_module
from selftrain.agentps.frames import Frames, chosen, load_frames, read_frames
from selftrain.errors import MediaError

SMALL = {"width": 20, "height": 30}


@given(st.integers(1, 200), st.integers(1, 32), st.booleans())
def test_which_pictures_are_shown(available, count, repeat):
    places = chosen(available, count, repeat=repeat)
    assert all(0 <= place < available for place in places)
    if available > count:
        assert places == sorted(set(places))
        assert len(places) == count
        gaps = np.diff([-0.5, *(p + 0.0 for p in places), available - 0.5])
        assert gaps.max() <= available / count + 1.5  # spread evenly, ends included
    else:
        expected = [i % available for i in range(count)] if repeat else list(range(available))
        assert places == expected


def test_no_picture_gives_no_frame():
    assert chosen(0, 16, repeat=True) == []
    assert load_frames([], Frames(16, **SMALL)) == []


def paint(folder, count):
    """Picture i is grey of level 5 i."""
    paths = []
    for i in range(count):
        paths.append(folder / f"{i:02d}.png")
        Image.new("RGB", (40, 60), (5 * i,) * 3).save(paths[-1])
    return paths


def level(image):
    return round(np.asarray(image)[image.height // 2, image.width // 2].mean() / 5)


@pytest.mark.parametrize(
    ("available", "shown"),
    [
        (40, [1, 3, 6, 8, 11, 13, 16, 18, 21, 23, 26, 28, 31, 33, 36, 38]),
        (16, list(range(16))),
        (3, [0, 1, 2] * 5 + [0]),
        (1, [0] * 16),
    ],
)
def test_an_album_of_any_length_is_sixteen_frames_in_order(tmp_path, available, shown):
    frames = load_frames(paint(tmp_path, available), Frames(16, **SMALL))
    assert [level(one) for one in frames] == shown
    assert {one.size for one in frames} == {(20, 30)}


def test_a_short_album_may_stay_short(tmp_path):
    assert len(load_frames(paint(tmp_path, 3), Frames(16, **SMALL, repeat=False))) == 3


def test_a_picture_keeps_its_proportions(tmp_path):
    Image.new("RGB", (100, 50), "red").save(tmp_path / "wide.png")
    [frame] = load_frames([tmp_path / "wide.png"], Frames(1, 40, 40))
    pixels = np.asarray(frame)
    red = (pixels == [255, 0, 0]).all(-1)
    assert red[20].all()
    assert not red[:9].any()
    assert red.any(1).sum() == 20
    assert (pixels[0, 0] == 128).all()


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(ImageError, match=r"broken\.png"):
        load_frames([tmp_path / "broken.png"], Frames(1, **SMALL))


def film(path, frames, rate=10, size=(64, 48), *, codec="mpeg4", begin=0, **options):
    """Frame i is grey of level i * 255 / frames, at the time begin + i."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        for i in range(frames):
            grey = av.VideoFrame.from_image(Image.new("RGB", size, (round(i * 255 / frames),) * 3))
            grey.pts, grey.time_base = begin + i, Fraction(1, rate)
            container.mux(stream.encode(grey))
        container.mux(stream.encode())
    return path


def test_a_video_is_sampled_evenly_over_its_length(tmp_path):
    path = film(tmp_path / "film.mp4", 80)
    frames = read_frames(path, 8, max_pixels=10_000)
    levels = [np.asarray(one).mean() * 80 / 255 for one in frames]
    # the middles of eight stretches of ten frames
    assert levels == pytest.approx([5, 15, 25, 35, 45, 55, 65, 75], abs=1.6)
    assert all(one.size == (64, 48) for one in frames)


@pytest.mark.parametrize(
    ("matrix", "size", "bright"),
    [
        ((0, 1, -1, 0), (48, 64), (40, 32)),  # a quarter to the right, as of a telephone held upright
        ((0, -1, 1, 0), (48, 64), (8, 32)),
        ((-1, 0, 0, -1), (64, 48), (32, 40)),
        ((1, 0, 0, 1), (64, 48), (32, 8)),
    ],
)
def test_a_video_is_shown_upright_as_its_header_says(tmp_path, matrix, size, bright):
    path, first = tmp_path / "film.mp4", Image.new("RGB", (64, 48))
    first.paste((255, 255, 255), (0, 0, 64, 16))  # bright at the top
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_image(first)))
        container.mux(stream.encode())

    def laid_out(a, b, c, d):
        return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)

    before, found, after = path.read_bytes().rpartition(laid_out(1, 0, 0, 1))
    assert found
    path.write_bytes(before + laid_out(*matrix) + after)
    [frame] = read_frames(path, 1, max_pixels=10_000)
    assert frame.size == size
    assert np.asarray(frame).mean() < 128 < np.asarray(frame)[bright[1], bright[0]].mean()


LIVE = {"live": "1"}  # written as it comes: a header without a length


@pytest.mark.parametrize("whole", [5_000, 0], ids=["from its beginning", "around what is shown"])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("live.mkv", LIVE),
        ("live.webm", LIVE | {"codec": "libvpx"}),
        ("joined.mkv", LIVE | {"begin": 50_000}),
        ("reordered.mkv", LIVE | {"codec": "libx264"}),
        ("late.mkv", {"begin": 900}),
        ("late.mp4", {"begin": 900}),
    ],
)
def test_a_video_whose_header_does_not_say_where_its_frames_are(tmp_path, name, kinds, whole, monkeypatch):
    monkeypatch.setattr(frames_module, "WHOLE", whole)
    path = film(tmp_path / name, 80, **kinds)
    levels = [np.asarray(one).mean() * 80 / 255 for one in read_frames(path, 8, max_pixels=10_000)]
    assert levels == pytest.approx([5, 15, 25, 35, 45, 55, 65, 75], abs=1.6)


def test_a_live_video_of_one_frame_and_one_that_is_too_long(tmp_path, monkeypatch):
    assert len(read_frames(film(tmp_path / "one.mkv", 1, **LIVE), 4, max_pixels=10_000)) == 4
    path = film(tmp_path / "long.mkv", 50, **LIVE)
    monkeypatch.setattr(frames_module, "MAX_SECONDS", 4)
    with pytest.raises(MediaError, match=r"long\.mkv: .* seconds long; at most 4 are read"):
        read_frames(path, 4, max_pixels=10_000)


def test_a_video_of_no_length_at_all_is_refused(tmp_path):
    """Its first stream has not one packet, only its second."""
    with av.open(str(tmp_path / "film.mkv"), "w", options=LIVE) as container:
        first, second = (container.add_stream("mpeg4", rate=10) for _ in range(2))
        for stream in (first, second):
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(second.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 48)))))
        container.mux(second.encode())
    with pytest.raises(MediaError, match=r"film\.mkv: neither its header nor its packets say how long"):
        read_frames(tmp_path / "film.mkv", 4, max_pixels=10_000)


def test_a_video_of_fewer_frames_than_asked_for(tmp_path):
    frames = read_frames(film(tmp_path / "short.mp4", 3), 8, max_pixels=10_000)
    levels = [np.asarray(one).mean() for one in frames]
    assert len(frames) == 8
    assert levels == sorted(levels)


def test_a_post_with_a_video_gives_frames_of_the_wanted_size(tmp_path):
    frames = load_frames([film(tmp_path / "film.mp4", 20)], Frames(4, 30, 30))
    assert [one.size for one in frames] == [(30, 30)] * 4


@pytest.mark.parametrize("case", ["no file", "no video", "large", "playlist", "codec"])
def test_videos_that_are_refused(tmp_path, case):
    path = tmp_path / "film.mp4"
    if case == "no video":
        path.write_bytes(b"this is no film" * 50)
    elif case == "large":
        film(path, 3, size=(640, 480))
    elif case == "playlist":
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    elif case == "codec":
        path = film(tmp_path / "film.mkv", 3)
        path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/ASP", b"V_NOBODYS/CODEC"))
    with pytest.raises(MediaError, match=r"film\.(mp4|mkv): "):
        read_frames(path, 4, max_pixels=100_000)

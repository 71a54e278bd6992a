"""Hostile and unusual image files."""

import os
import struct
import zlib

import numpy as np
import pytest
from attack_helpers import many_scans, picture
from PIL import Image

from backbones import images
from backbones.errors import ImageError
from backbones.images import MAX_PIXELS, check_image, open_image


def bomb_png(path, width, height):
    """A few bytes whose header promises width x height pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(("width", "height"), [(8_000, 8_000), (12_000, 12_000), (100_000, 100_000)])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, width, height):
    path = bomb_png(tmp_path / "bomb.png", width, height)
    for refuse in (check_image, open_image):
        with pytest.raises(ImageError, match=r"bomb\.png.*pixels; at most 50,000,000 are decoded") as refused:
            refuse(path)
        assert "limit" not in str(refused.value), "Pillow's own, or one that not every command has"


def test_the_limit_is_an_argument_and_is_inclusive(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (20, 10)).save(path)
    assert check_image(path, max_pixels=200)[:2] == (20, 10)
    with pytest.raises(ImageError, match=r"20 x 10 = 200 pixels; at most 199"):
        open_image(path, max_pixels=199)
    assert MAX_PIXELS == 50_000_000


def test_a_strip_whose_resizing_would_explode_is_refused(tmp_path):
    path = tmp_path / "strip.png"
    Image.new("L", (1, 101)).save(path)
    with pytest.raises(ImageError, match="strip"):
        check_image(path)


def test_a_truncated_jpeg_passes_the_header_check_and_is_refused_when_opened(tmp_path):
    path = tmp_path / "cut.jpg"
    noise = np.random.RandomState(0).randint(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert check_image(path).format == "JPEG"
    with pytest.raises(ImageError, match=r"cut\.jpg.*cannot be decoded.*complete JPEG"):
        open_image(path)


@pytest.mark.parametrize("kind", ["png", "gif", "webp", "bmp"])
def test_other_truncated_formats_are_refused(tmp_path, kind):
    path = tmp_path / f"cut.{kind}"
    noise = np.random.RandomState(0).randint(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="cut"):
        open_image(path)


def test_files_that_are_no_images_say_what_they_are(tmp_path):
    text, empty, fifo, tiff = (tmp_path / name for name in ("text.png", "empty.png", "fifo.png", "scan.tiff"))
    text.write_text("not a picture")
    empty.write_bytes(b"")
    os.mkfifo(fifo)
    Image.new("RGB", (4, 4)).save(tiff)
    expected = {
        text: "expected one of JPEG",
        empty: "the file is empty",
        fifo: "not a regular file",
        tmp_path: "not a regular file",
        tmp_path / "gone.png": "no such file",
        tiff: "expected one of JPEG",
    }
    for path, message in expected.items():
        for refuse in (check_image, open_image):
            with pytest.raises(ImageError, match=message) as caught:
                refuse(path)
            assert str(path) in str(caught.value)


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    path = tmp_path / "a.gif"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert open_image(path).getpixel((4, 4)) == (255, 0, 0)


def test_cmyk_becomes_rgb(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path)
    red, green, blue = open_image(path).getpixel((8, 8))
    assert red > 240
    assert max(green, blue) < 15


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(path)
    assert [open_image(path).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_transparency_lies_on_white(tmp_path):
    palette, rgba = tmp_path / "p.png", tmp_path / "a.png"
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(palette, transparency=0)
    assert [open_image(palette).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 100, 50)]
    Image.new("RGBA", (1, 1), (0, 0, 0, 128)).save(rgba)
    assert open_image(rgba).getpixel((0, 0)) == (127, 127, 127)


def test_exif_orientation_is_applied(tmp_path):
    path = tmp_path / "a.jpg"
    image = Image.new("RGB", (32, 16), "black")
    image.paste("white", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    image.save(path, exif=exif)
    upright = open_image(path)
    assert upright.size == (16, 32)
    assert upright.getpixel((8, 4))[0] > 240
    assert upright.getpixel((8, 28))[0] < 15


def test_a_jpeg_is_decoded_small_but_not_below_twice_the_target(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (1600, 800)).save(path)
    assert open_image(path, target_size=100).size == (400, 200)
    assert open_image(path).size == (1600, 800)


# ---- large ones ----


def drawn(mode, size):
    rng = np.random.RandomState(1)
    bands = {"1": 1, "L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    values = rng.randint(0, 255, (size[1], size[0], bands), dtype=np.uint8)
    if mode in ("1", "P"):
        return Image.fromarray(values[..., 0]).convert(mode)
    return Image.fromarray(values[..., 0] if bands == 1 else values, mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_a_large_picture_in_strips_is_what_it_is_as_a_whole(tmp_path, monkeypatch, mode):
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[0x0112] = 6  # turned
    drawn(mode, (130, 97)).save(path, exif=exif)
    whole = open_image(path)
    monkeypatch.setattr(images, "LARGE", 1000)
    monkeypatch.setattr(images, "_STRIP", 1300)
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(whole))
    # shrunk on the way: by 4, for 97 is more than eight times 10 and at least twice 10 are left
    shrunk = open_image(path, target_size=10)
    assert shrunk.size == (25, 33)
    upright = np.asarray(
        whole.transpose(Image.Transpose.ROTATE_90).reduce(4).transpose(Image.Transpose.ROTATE_270)
    )
    assert np.array_equal(np.asarray(shrunk), upright)


def test_what_was_shrunk_on_the_way_is_not_shrunk_again(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LARGE", 1000)
    drawn("RGB", (200, 300)).save(tmp_path / "a.png")
    once = open_image(tmp_path / "a.png", target_size=20)
    once.save(tmp_path / "b.bmp")
    assert np.array_equal(np.asarray(open_image(tmp_path / "b.bmp", target_size=20)), np.asarray(once))


def test_16_bits_are_scaled_as_before(tmp_path):
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(samples).save(tmp_path / "a.png")
    expected = (samples / 257).round().astype(np.uint8)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png"))[..., 0], expected)


def test_a_jpeg_in_many_scans_is_refused_undecoded_and_a_usual_one_is_not(tmp_path):
    usual, many = tmp_path / "usual.jpg", tmp_path / "many.jpg"
    usual.write_bytes(picture(900, 900, "RGB", "JPEG", progressive=True))
    many.write_bytes(many_scans(900, 900, 400))
    assert open_image(usual).size == (900, 900)
    assert check_image(usual).work < check_image(many, max_pixels=50_000_000).work
    limit = 900 * 900
    assert check_image(usual, max_pixels=limit).format == "JPEG"
    with pytest.raises(ImageError, match=r"many\.jpg.*progressive JPEG of 900 x 900 pixels in 4\d\d scans"):
        open_image(many, max_pixels=limit)

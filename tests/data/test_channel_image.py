"""Images of any number of channels: TIFF and NumPy files, and what is refused before it fills the memory."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from common.data.channel_image import look_at_channels, read_channels
from common.errors import UserError


def random_pixels(channels, dtype="uint16", size=(20, 30)):
    return (np.random.default_rng(0).random((*size, channels)) * 250).astype(dtype)


def write_tiff(path, pixels, photometric="minisblack", **options):
    """Planes are stored as tifffile stores an array ``[channels, h, w]``."""
    stored = pixels.transpose(2, 0, 1) if options.get("planarconfig") == "separate" else pixels
    tifffile.imwrite(path, stored, photometric=photometric, metadata=None, **options)


def refusal(path, channels=6):
    messages = set()
    for read in (read_channels, look_at_channels):
        with pytest.raises(UserError) as caught:
            read(str(path), channels)
        messages.add(str(caught.value))
    (message,) = messages
    assert str(path) in message
    assert "\n" not in message
    return message


# ---- what is read


LAYOUTS = {
    "interleaved": {"planarconfig": "contig"},
    "planes": {"planarconfig": "separate"},
    "tiles": {"planarconfig": "contig", "tile": (16, 16), "compression": "zlib", "predictor": True},
    "big-endian": {"planarconfig": "contig", "byteorder": ">"},
    "BigTIFF": {"planarconfig": "separate", "bigtiff": True, "compression": "zlib"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("channels", "dtype"), [(2, "uint16"), (3, "uint16"), (4, "uint8"), (5, "uint16"), (6, "uint16"), (13, "uint8")]
)
def test_the_channels_of_tiff_files_keep_their_order_and_bits(tmp_path, layout, channels, dtype):
    pixels, options = random_pixels(channels, dtype), dict(LAYOUTS[layout])
    if channels == 3:
        options["photometric"] = "rgb"
    if options.get("compression") and dtype == "uint8":
        options.pop("predictor", None)
    write_tiff(tmp_path / "a.tif", pixels, **options)
    found = read_channels(str(tmp_path / "a.tif"), channels)
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)
    info, extremes = look_at_channels(str(tmp_path / "a.tif"), channels)
    assert info == (30, 20, dtype == "uint16", 1)
    assert (extremes is None) == (not dtype.startswith("float"))


def test_pages_of_one_channel_each_are_the_channels(tmp_path):
    pixels = random_pixels(6)
    tifffile.imwrite(tmp_path / "a.tif", pixels.transpose(2, 0, 1), photometric="minisblack")
    np.testing.assert_array_equal(read_channels(str(tmp_path / "a.tif"), 6), pixels)
    assert "it has 6 channels, not 5" in refusal(tmp_path / "a.tif", 5)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for size in (20, 10):
            file.write(random_pixels(1, size=(size, 30))[..., 0], photometric="minisblack")
    assert "its pages are not the channels of one image" in refusal(tmp_path / "a.tif", 2)


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "float16", "float32", ">f8"])
def test_arrays_keep_their_values(tmp_path, dtype):
    pixels = random_pixels(6, dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(pixels))
    found = read_channels(str(tmp_path / "a.npy"), 6)
    assert found.dtype == {"uint8": "uint8", ">u2": "uint16"}.get(dtype, "float32")
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels.astype(found.dtype))
    np.save(tmp_path / "a.npy", pixels[..., 0])
    np.testing.assert_array_equal(read_channels(str(tmp_path / "a.npy"), 1), found[..., :1])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colors_of_16_bits_are_red_green_blue_and_not_cut(tmp_path, suffix):
    pixels = random_pixels(3) * np.uint16(257) + np.uint16(1)
    assert cv2.imwrite(str(tmp_path / f"a.{suffix}"), pixels[:, :, ::-1])  # with LZW, which OpenCV reads
    np.testing.assert_array_equal(read_channels(str(tmp_path / f"a.{suffix}"), 3), pixels)
    gray = read_channels(str(tmp_path / f"a.{suffix}"), 1)
    assert (gray.shape, gray.dtype) == ((20, 30, 1), np.uint16)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_other_images_become_colors_as_before(tmp_path, mode):
    image = Image.fromarray(random_pixels(3, "uint8")).convert(mode)
    image.save(tmp_path / "a.png")
    pixels = read_channels(str(tmp_path / "a.png"), 3)
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


# ---- what is refused


def tag(number, kind, count, value):
    return struct.pack("<HHII", number, kind, count, value)


def tiff_header(width, height, channels):
    """An uncompressed TIFF of 16 bits whose header states a size that its few bytes do not have."""
    fields = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1)]
    fields += [(273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, 2**31)]
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + b"".join(tag(*field) for field in fields) + b"\0\0\0\0"


def npy_header(shape, dtype="'<u2'"):
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text) + 1) + text + b"\n"


def object_array():
    file = io.BytesIO()
    np.save(file, np.array([[[{}] * 6] * 2] * 2), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.npy", object_array(), "its pixels are object; save them as uint8, uint16 or floating-point numbers"),
        ("a.npy", npy_header((10**6, 10**6, 6)), "1000000x1000000 pixels, more than 268,435,456"),
        ("a.npy", npy_header((16000, 16000, 6)), "16000x16000 pixels of 6 channels, more than 805,306,368 values"),
        ("a.npy", npy_header((8000, 8000, 6)), "its shape is [8000, 8000, 6], but it has 0 bytes"),
        ("a.npy", npy_header((-5, -5, 6)), "it has no pixels"),
        ("a.npy", npy_header((6, 20, 30)), "it has 30 channels, not 6"),
        ("a.npy", npy_header((6,)), "its shape is [6]; save it as [height, width, channels]"),
        ("a.npy", npy_header((4, 4, 6), "[('x', '<u2')]"), "its pixels are [('x', '<u2')]"),
        ("a.npy", npy_header((4, 4, 6), "'<i2'"), "its pixels are int16"),
        ("a.npy", b"no array", "is damaged"),
        ("a.npy", b"\x93NUMPY\x01\0\xff\xff" + b"(" * 65535, "is damaged"),
        ("a.tif", tiff_header(10**6, 10**6, 6), "1000000x1000000 pixels, more than"),
        ("a.tif", tiff_header(16000, 16000, 6), "more than 805,306,368 values"),
        ("a.tif", tiff_header(8000, 8000, 6), "is damaged"),
        ("a.tif", tiff_header(64, 64, 5), "it has 5 channels, not 6"),
        ("a.tif", b"II*\0", "is damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_files_are_refused_by_their_header(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    assert told in refusal(tmp_path / name)


def test_a_number_of_channels_that_a_file_cannot_have_is_named(tmp_path):
    Image.fromarray(random_pixels(3, "uint8")).save(tmp_path / "a.png")
    assert "it does not have 6 channels, which only TIFF and .npy files can have" in refusal(tmp_path / "a.png")
    write_tiff(tmp_path / "a.tif", random_pixels(6), planarconfig="contig")
    assert "it has 6 channels, not 3" in refusal(tmp_path / "a.tif", 3)
    tifffile.imwrite(tmp_path / "a.tif", random_pixels(1, "float32")[..., 0])
    expected = "it has 1 channel, not 3, and gray arrays and floating-point numbers are not converted; "
    assert expected in refusal(tmp_path / "a.tif", 3)
    assert "does not exist; restore it" in refusal(tmp_path / "b.npy")
    assert "does not exist; restore it" in refusal(tmp_path / "b.tif")


def test_values_that_are_not_finite_are_refused(tmp_path):
    pixels = random_pixels(6, "float64")
    for value in (np.nan, 1e300):  # which is infinite in float32
        pixels[3, 4, 5] = value
        np.save(tmp_path / "a.npy", pixels)
        assert "values that are not finite, such as NaN" in refusal(tmp_path / "a.npy")


def test_a_compression_that_needs_another_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write_tiff(tmp_path / "a.tif", random_pixels(6), planarconfig="contig", compression="zlib")
    content = (tmp_path / "a.tif").read_bytes()
    field = struct.pack("<HHIHH", 259, 3, 1, 8, 0)
    assert content.count(field) == 1
    (tmp_path / "a.tif").write_bytes(content.replace(field, struct.pack("<HHIHH", 259, 3, 1, 5, 0)))
    assert "reading LZW compression needs pip install imagecodecs; install it, or" in refusal(tmp_path / "a.tif")


def test_a_strip_that_expands_too_far_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("common.data.channel_image._MAX_COMPRESSED", 100)
    write_tiff(tmp_path / "a.tif", random_pixels(6), planarconfig="contig", compression="zlib")
    assert "a compressed strip of more than 100 bytes; save it in tiles" in refusal(tmp_path / "a.tif")


def test_a_turned_stack_is_refused(tmp_path):
    write_tiff(tmp_path / "a.tif", random_pixels(6), planarconfig="contig", extratags=[(274, 3, 1, 6, True)])
    assert "its tag Orientation turns or mirrors it" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.npy", "a.tif"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "it is not a regular file" in refusal(tmp_path / name)


def test_a_truncated_stack_is_damaged(tmp_path: Path):
    for compression in (None, "zlib"):
        write_tiff(tmp_path / "a.tif", random_pixels(6), planarconfig="contig", compression=compression)
        (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-700])
        assert "is damaged" in refusal(tmp_path / "a.tif")

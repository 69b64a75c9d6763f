"""Which files are images, and how they are decoded."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import time
import unicodedata
import zlib
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.ImageCms import ImageCmsProfile, createProfile

from common.data.image_file import (
    check_header,
    list_images,
    load_rgb,
    look_at_image,
    open_image,
    read_image,
    to_rgb,
)
from common.errors import UserError, missing_hint
from tests.helpers.programs import ROOT

NOT_UTF8 = os.fsdecode(b"\xff\xe9.png")


def random_image(height=40, width=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))


def test_images_are_listed_by_suffix_without_hidden_files_and_folders(tmp_path):
    for name in ("b/photo.JPG", "b/.hidden.png", ".cache/x.png", "a.tiff", "notes.txt", "folder.png/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [str(tmp_path / name) for name in ("a.tiff", "b/photo.JPG", "folder.png/c.webp")]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    def scandir(path, original=os.scandir):
        if Path(path).name in ("more", "lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    for name in ("more", "lost+found"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"cannot list .*/more: Permission denied; check permissions"):
        list_images(tmp_path)
    (tmp_path / "more").rmdir()
    assert not list_images(tmp_path)


@pytest.mark.parametrize("name", ["天空.png", "a%05d.png", NOT_UTF8])
def test_images_of_any_name_are_read(tmp_path, name):
    random_image().save(tmp_path / name)
    np.testing.assert_array_equal(read_image(str(tmp_path / name)), np.asarray(random_image()))
    np.testing.assert_array_equal(load_rgb(tmp_path / name), np.asarray(random_image()))


def test_a_missing_path_with_backslashes_is_explained_and_quoted_as_it_is(tmp_path):
    with pytest.raises(UserError, match=r"image .*/images\\a  b\.jpg does not exist; .*its backslashes .* write /"):
        look_at_image(f"{tmp_path}/images\\a  b.jpg")
    with pytest.raises(UserError, match=r"remove it from the data$"):
        look_at_image(f"{tmp_path}/a.jpg")


@pytest.mark.parametrize(("on_disk", "given"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_missing_path_with_other_unicode_characters_is_explained(tmp_path, on_disk, given):
    folder = tmp_path / unicodedata.normalize(on_disk, "für é")
    folder.mkdir()
    (folder / "a.jpg").touch()
    path = f"{tmp_path}/{unicodedata.normalize(given, 'für é')}/a.jpg"
    with pytest.raises(UserError, match=rf"a\.jpg does not exist; .* \(Unicode {on_disk}\): write it so, or rename it"):
        check_header(path)
    assert not missing_hint(f"{folder}/b.jpg")


def png_header(width, height, *more):
    """A PNG whose header states a size that its few bytes do not have."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    chunks = [header, *more, (b"IDAT", b"x"), (b"IEND", b"")]
    parts = (struct.pack(">I", len(data)) + tag + data + struct.pack(">I", crc32(tag + data)) for tag, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_content():
    file = io.BytesIO()
    random_image(300, 300).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("read", [load_rgb, read_image, look_at_image])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty; replace or remove it"),
        (b"no image", "its content is none of BMP, .*; convert or remove it"),
        # Pillow would run Ghostscript.
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "its content is none of BMP"),
        (png_header(32000, 32000), "more than 268,435,456 pixels; crop or shrink it"),
        (png_header(16500, 16500), "16500x16500 pixels, more than 268,435,456; crop or shrink it"),
        (png_header(65500, 1), "65500x1 pixels, and one side is more than 32 times the other; crop it"),
        (png_content()[:-200], "(damaged|truncated).*; replace"),
    ],
    ids=["empty", "text", "eps", "huge", "large", "long", "truncated"],
)
def test_what_cannot_be_used_is_refused_with_the_reason(tmp_path, read, content, told):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=told):
        read(str(tmp_path / "a.png"))


def test_pillow_prints_no_warning_beside_the_refusal(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(16500, 16500))
    code = "from common.data.image_file import check_header; check_header('a.png')"  # pytest has filters of its own
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "more than 268,435,456; crop" in result.stderr
    assert "Warning" not in result.stderr


def test_a_large_image_is_not_too_large(tmp_path, recwarn):
    (tmp_path / "a.png").write_bytes(png_header(16000, 16000))
    check_header(str(tmp_path / "a.png"))
    assert not recwarn


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_rgb(tmp_path / "missing.png")
    with pytest.raises(UserError, match="does not exist; restore it"):
        read_image(str(tmp_path / "missing.png"))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), MemoryError()])
def test_only_a_damaged_image_is_called_damaged(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UserError, match=r"Permission denied; check|not enough memory; crop"):
        look_at_image(str(tmp_path / "a.png"))


def test_large_jpegs_may_be_decoded_at_a_fraction_of_their_size(tmp_path):
    random_image(800, 640).save(tmp_path / "a.jpg")
    assert load_rgb(tmp_path / "a.jpg", 150).size == (160, 200)
    assert load_rgb(tmp_path / "a.jpg").size == (640, 800)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied_by_all_readers_alike(tmp_path, suffix, orientation):
    exif, path = Image.Exif(), str(tmp_path / f"a.{suffix}")
    exif[0x0112] = orientation
    stored = np.zeros((64, 48, 3), np.uint8)
    stored[:32, :24] = 255
    Image.fromarray(stored).save(path, exif=exif)
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    shape = (64, 48) if orientation < 5 else (48, 64)
    for pixels in (read_image(path), np.asarray(load_rgb(path))):
        assert pixels.shape == (*shape, 3)
        white = [spot for spot in [(0, 0), (0, -1), (-1, 0), (-1, -1)] if pixels[spot].min() > 128]
        assert white == [corner[orientation]]
    assert look_at_image(path) == (*shape[::-1], False, orientation)
    assert load_rgb(path, 12).size[0] * shape[0] == load_rgb(path, 12).size[1] * shape[1]


def test_damaged_exif_data_does_no_harm(tmp_path):
    random_image().save(tmp_path / "a.jpg", exif=b"Exif\0\0nothing of EXIF")
    assert load_rgb(tmp_path / "a.jpg").size == (30, 40)
    assert look_at_image(str(tmp_path / "a.jpg")).orientation == 1


@pytest.mark.parametrize("mode", ["1", "LA", "P", "CMYK", "I;16", "I"])
def test_modes_are_converted_to_rgb(mode):
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    if mode in ("I;16", "I"):
        image = Image.fromarray(gray.astype(np.uint16) * 257)
        image = image if mode == "I;16" else image.convert("I")
    else:
        image = Image.fromarray(gray).convert(mode)
        if mode.endswith("A"):
            image.putalpha(3)  # is dropped, not blended
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    if mode != "1":
        np.testing.assert_array_equal(np.asarray(rgb), gray[..., None].repeat(3, axis=2))


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="no defined range"):
        to_rgb(Image.new("F", (3, 3)))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for read in (load_rgb, read_image):
        with pytest.raises(UserError, match="it is not a regular file"):
            read(str(tmp_path / "a.png"))


def test_a_header_that_takes_minutes_is_refused(tmp_path):
    path = tmp_path / "a.ppm"
    for start, is_refused in (
        (b"P6\n#" + b"x" * 10**7 + b"\n", True),
        (b"P6 " + b" " * 10**7, True),
        (b"P6 4#\n#" + b"1 2 3 4 " * 10**6 + b"\n 4 255\n", True),
        (b"P6\n# a comment\n# another #\n", False),
    ):
        path.write_bytes(start + b"40 40 255\n" + bytes(4800))
        began = time.process_time()
        if is_refused:
            with pytest.raises(UserError, match="its header has more than 4,096 bytes"):
                load_rgb(path)
        else:
            assert load_rgb(path).size == (40, 40)
        assert time.process_time() - began < 1


def test_memory_is_not_allocated_for_a_chunk_that_is_longer_than_the_file(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (40, 30)).save(path)
    path.write_bytes(re.sub(rb".{4}IDAT", b"\xff\0\0\0IDAT", path.read_bytes(), flags=re.DOTALL))  # of 4 GiB
    for read in (read_image, check_header):
        with pytest.raises(UserError, match="a chunk is longer than the file"):
            read(str(path))


@pytest.mark.parametrize("count", [32, 33])
def test_a_png_of_many_texts_that_libpng_would_unpack_is_refused(tmp_path, count):
    path = tmp_path / "a.png"
    data = b"zTXta\0\0" + zlib.compress(b"text")
    text = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", crc32(data))
    content = png_content()
    path.write_bytes(content[:-12] + text * count + content[-12:])  # before the end
    for read in (read_image, look_at_image):
        if count == 32:
            read(str(path))
        else:
            with pytest.raises(UserError, match="more than 32 compressed texts; save it again without them"):
                read(str(path))


@pytest.mark.parametrize("read", [load_rgb, read_image, check_header])
def test_a_png_whose_orientation_not_all_decoders_see_is_refused(tmp_path, read):
    file, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    random_image().save(file, "png", exif=exif)
    content = file.getvalue()
    place = content.index(b"eXIf") - 4
    chunk = content[place : place + 12 + int.from_bytes(content[place : place + 4], "big")]
    without = content.replace(chunk, b"")
    (tmp_path / "before.png").write_bytes(content)
    read(str(tmp_path / "before.png"))
    (tmp_path / "behind.png").write_bytes(without[:-12] + chunk + without[-12:])
    with pytest.raises(UserError, match="its orientation stands behind its pixels, or twice; save it again"):
        read(str(tmp_path / "behind.png"))


def test_a_plain_ppm_of_comments_is_refused(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P3\n10 10\n255\n" + b"1 2 3 " * 100)
    assert load_rgb(str(tmp_path / "a.ppm")).size == (10, 10)
    (tmp_path / "b.ppm").write_bytes(b"P3\n10 10\n255\n" + b"#\n" * 10_000 + b"1 2 3 " * 100)
    with pytest.raises(UserError, match="it has far more text than pixels"):
        load_rgb(str(tmp_path / "b.ppm"))


def test_a_tiff_whose_tile_is_far_larger_than_it_is_refused(tmp_path):
    tags = {256: 100, 257: 100, 258: 8, 259: 8, 262: 1, 277: 1, 322: 65535, 323: 4096, 324: 8, 325: 8}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<IQH", 16, 0, len(tags))  # the tile has 8 bytes, from the eighth on
    (tmp_path / "a.tif").write_bytes(header + entries + bytes(4))
    with pytest.raises(UserError, match="it has tiles of 65535x4096 pixels; save it again with smaller ones"):
        load_rgb(str(tmp_path / "a.tif"))


@pytest.mark.parametrize("read", [load_rgb, read_image, check_header])
def test_a_jpeg_of_many_scans_is_refused_and_one_with_other_data_behind_it_is_not(tmp_path, read):
    path, file = str(tmp_path / "a.jpg"), io.BytesIO()
    random_image().save(file, "jpeg", progressive=True)
    content = file.getvalue()
    video = np.random.default_rng(0).bytes(2**24)  # as phones write it
    assert video.count(b"\xff\xda") > 200
    Path(path).write_bytes(content + video)
    read(path)
    last = content.rindex(b"\xff\xda")
    Path(path).write_bytes(content[:-2] + content[last : last + 10] * 101 + content[-2:])
    with pytest.raises(UserError, match="more than 100 scans; save it again"):
        read(path)


def test_the_name_of_a_color_profile_cannot_reach_the_terminal(tmp_path, capfd):
    path = tmp_path / "a.png"
    profile = bytearray(ImageCmsProfile(createProfile("sRGB")).tobytes())
    profile[36:40] = b"none"  # which libpng warns of
    for name in (b"sRGB", b"\x1b[31m"):
        path.write_bytes(png_header(32, 32, (b"iCCP", name + b"\0\0" + zlib.compress(bytes(profile)))))
        with pytest.raises(UserError, match="color profile cannot be printed" if b"\x1b" in name else "damaged"):
            read_image(str(path))
    assert "\x1b" not in capfd.readouterr().err


def test_floating_point_pixels_of_a_file_that_opencv_keeps_so_are_refused(tmp_path):
    Image.fromarray(np.ones((40, 30), np.float32)).save(tmp_path / "a.ppm")  # a PFM file
    with pytest.raises(UserError, match="floating-point numbers; save it with 8 bits"):
        read_image(str(tmp_path / "a.ppm"))
    Image.fromarray(np.ones((40, 30), np.float32)).save(tmp_path / "a.tif")  # which OpenCV does not decode
    with pytest.raises(UserError, match="floating-point numbers; save it with 8 bits"):
        look_at_image(str(tmp_path / "a.tif"))


def test_a_damaged_header_is_an_error_of_the_user(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6 x 10 255")  # a ValueError in Pillow
    with pytest.raises(UserError, match="it is damaged"), open_image(tmp_path / "a.ppm"):
        pass

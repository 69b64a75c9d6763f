"""Archives whose members cannot be read in place, or that are damaged: each is one line that names the file."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from itertools import islice
from pathlib import Path

import pytest

from image_classification.archive_file import Member, list_archive, read_member
from tests.helpers.dataset_cases import assert_refused

CONTENTS = {"cat/1.jpg": bytes(range(256)) * 5, "cat/sub/2.PNG": b"abc", "dog/3.jpeg": b""}
OTHERS = ("cat/.4.jpg", "__MACOSX/cat/5.jpg", "cat/notes.txt", "../dog/6.jpg")


def write_tar(path: Path, contents: dict[str, bytes], change=lambda info: None, **options) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_zip(path: Path, contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def write(path: Path, contents: dict[str, bytes]) -> Path:
    return (write_tar if path.suffix == ".tar" else write_zip)(path, contents)


def read_all(path: Path) -> dict[str, bytes]:
    file = os.open(path, os.O_RDONLY)
    try:
        return {member.name: read_member(file, member._asdict()) for member in list_archive(path)}
    finally:
        os.close(file)


def refused(path: Path, *parts: str) -> None:
    assert_refused(lambda: list(islice(list_archive(path), 1000)), str(path), *parts)


@pytest.mark.parametrize("name", ["a.tar", "a.zip", "A.ZIP"])
def test_the_images_of_an_archive_are_read_and_nothing_else(tmp_path, name):
    path = write(tmp_path / name, CONTENTS | dict.fromkeys(OTHERS, b"other"))
    assert read_all(path) == CONTENTS


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_a_dot_and_a_root_before_a_name_are_no_folders(tmp_path, name):
    assert [*read_all(write(tmp_path / name, {"./cat/1.jpg": b"1", "/dog//2.jpg": b"2"}))] == ["cat/1.jpg", "dog/2.jpg"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_has_long_names_and_names_that_are_no_utf8(tmp_path, form):
    contents = {os.fsdecode(b"%s/\xff\xc3\xa4.jpg" % (b"x" * 80)): b"1", f"{'y' * 80}/{'z' * 90}.jpg": b"2"}
    assert read_all(write_tar(tmp_path / "a.tar", contents, format=form)) == contents


def test_names_in_a_zip_from_unix_are_utf8_without_the_flag(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"k\u00e4t/1.jpg": b"1"})
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        content[content.index(signature) + flags + 1] &= ~8
    path.write_bytes(content)
    assert read_all(path) == {"k\u00e4t/1.jpg": b"1"}


def test_stored_members_of_a_zip_have_a_crc_too(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"cat/1.jpg": b"abcdefgh" * 9}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"hab", b"hAb", 1))
    assert_refused(lambda: read_all(path), "damaged")


# ---- cut off


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_an_archive_that_is_cut_off_anywhere_is_an_error(tmp_path, name):
    path = write(tmp_path / name, CONTENTS)
    whole = path.read_bytes()
    # A tar needs one block of zeros after the last block that is used; what follows only fills it up.
    needed = len(whole) if name == "a.zip" else -(-len(whole.rstrip(b"\0")) // 512) * 512 + 512
    for length in {*range(0, needed, 61), *range(0, needed, 512), needed - 1}:
        path.write_bytes(whole[:length])
        refused(path)
    path.write_bytes(whole[:needed])
    assert read_all(path) == CONTENTS


def test_a_tar_with_a_damaged_header_does_not_end_there(tmp_path):
    content = bytearray(write_tar(tmp_path / "a.tar", CONTENTS).read_bytes())
    second = content.index(b"cat/sub/2.PNG")
    content[second] ^= 1  # the header's checksum is wrong now
    (tmp_path / "a.tar").write_bytes(content)
    refused(tmp_path / "a.tar", f"damaged at byte {second}")


def test_tars_joined_by_cat_are_refused(tmp_path):
    parts = [write_tar(tmp_path / f"{name}.tar", {f"{name}/1.jpg": b"1"}).read_bytes() for name in ("cat", "dog")]
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    refused(tmp_path / "a.tar", "tar -A")


# ---- what cannot be read in place


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_tar_are_refused_and_devices_left_out(tmp_path, kind):
    def change(info):
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    refused(write_tar(tmp_path / "a.tar", {"cat/1.jpg": b""}, change), "'cat/1.jpg' is a link", "tar -h")
    kind = tarfile.CHRTYPE
    assert read_all(write_tar(tmp_path / "b.tar", {"cat/1.jpg": b""}, change)) == {}


def test_links_in_a_zip_are_refused(tmp_path):
    link = zipfile.ZipInfo("cat/1.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path / "a.zip", "'cat/1.jpg' is a link", "zip -y")


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_compressed_tar_is_refused_whatever_its_name(tmp_path, mode):
    with tarfile.open(tmp_path / "a.tar", mode):
        pass
    refused(tmp_path / "a.tar", "an intact and uncompressed tar, as tar cf makes it")


def test_an_encrypted_zip_and_other_compression_are_named(tmp_path):
    content = bytearray(write_zip(tmp_path / "a.zip", {"cat/1.jpg": b"1"}).read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flags in the table of contents
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", "'cat/1.jpg' is encrypted")
    refused(write_zip(tmp_path / "b.zip", {"cat/1.jpg": b"1"}, zipfile.ZIP_LZMA), "'cat/1.jpg' is compressed by lzma")


# ---- hostile sizes


def tar_header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    header = bytearray(struct.pack("100s8s8s8s12s12s8s1s100s8s", name, b"644", b"0", b"0", size, b"0", b" " * 8, kind,
                                   b"", b"ustar\00000").ljust(512, b"\0"))  # fmt: skip
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def base256(number: int) -> bytes:
    return (number % 2**96).to_bytes(12, "big") if number < 0 else (2**95 + number).to_bytes(12, "big")


@pytest.mark.parametrize(
    "size", [base256(-512), base256(2**62), b"7" * 11, b"4000"], ids=["back to the header", "huge", "octal", "beyond"]
)
@pytest.mark.parametrize("kind", [b"0", b"7", b"L", b"x", b"Z"])
def test_a_size_beyond_the_tar_is_refused_without_memory(tmp_path, size, kind):
    (tmp_path / "a.tar").write_bytes(
        tar_header(b"cat/0.jpg", b"0") + tar_header(b"cat/1.jpg", size, kind) + bytes(1024)
    )
    tracemalloc.start()
    try:
        refused(tmp_path / "a.tar")
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_header_longer_than_any_path_is_refused_at_once(tmp_path, form):
    longest = {f"{'x' * 250}/" * 16 + "1.jpg": b"1"}
    assert read_all(write_tar(tmp_path / "a.tar", longest, format=form)) == longest
    began = time.process_time()  # some versions of tarfile take the square of the number of digits
    refused(write_tar(tmp_path / "b.tar", {"9" * 100_000: b"1"}, format=form), "a header is too long")
    assert time.process_time() - began < 1


def test_an_image_of_more_than_a_gibibyte_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    with path.open("wb") as file:  # the disk keeps the zeros as a hole
        file.write(tar_header(b"cat/1.jpg", b"%o" % (2**30 + 512)))
        file.truncate(2**30 + 4096)
    refused(path, "1,073,742,336 bytes, more than 1,073,741,824")


@pytest.mark.parametrize("size", [1000, 10**7 + 1])
def test_a_member_that_unpacks_to_another_size_is_refused(tmp_path, size):
    packed = zlib.compressobj(wbits=-15)
    stored = packed.compress(bytes(10**7)) + packed.flush()
    (tmp_path / "a").write_bytes(b"PK\3\4".ljust(30, b"\0") + stored)
    member = Member("", 0, len(stored), size, zlib.crc32(bytes(size)), True)
    file = os.open(tmp_path / "a", os.O_RDONLY)
    tracemalloc.start()
    try:
        assert_refused(lambda: read_member(file, member._asdict()), "not as many as stated")
        assert tracemalloc.get_traced_memory()[1] < 3 * size + 10**5
    finally:
        os.close(file)
        tracemalloc.stop()

"""A checkpoint file is whole or absent, whatever happens while it is written, and its damage is found."""

import contextlib
import errno
import json
import os
import pickle
import random
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

from common.checkpoints.file_format import load_file, locate_file, remove_leftovers, save_file
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ARRAYS = {
    "float": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "half": np.array([0.1, -np.inf, np.nan], np.float16),
    "double": np.array([[0.1]]),
    "integers": np.array([2**62, -1]),
    "bytes": np.arange(256, dtype=np.uint8),
    "truth": np.array([True, False]),
    "0-d": np.array(3.5, np.float32),
    "empty": np.zeros((2, 0, 3), np.float32),
    "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(10, dtype=np.int16)[::3],
}
STATE = {
    "model": ARRAYS,
    "optimizer": {"head.weight/moment1": np.ones(3, np.float32)},
    "epoch": 3,
    "best": {"top1": 91.5},
    "config": "SEED: 0\n",
    "class_names": None,
    "history": [0.5, 0.25, (1, 2)],
}
SUFFIXES = [".pdparams", ".safetensors"]


def assert_same_arrays(found, arrays):
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        value = np.asarray(found[name])
        assert (value.dtype, value.shape) == (array.dtype, array.shape), name
        assert value.tobytes() == array.tobytes(), name


def assert_is_state(found):
    assert_same_arrays(found["model"], STATE["model"])
    assert_same_arrays(found["optimizer"], STATE["optimizer"])
    for name in STATE.keys() - {"model", "optimizer"}:
        assert found[name] == STATE[name]


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_one_line(error, *parts):
    assert str(error).isprintable()
    for part in parts:
        assert str(part) in str(error)


# ---- there and back


def test_state_is_read_as_it_was_written(tmp_path):
    save_file(STATE, tmp_path / "new" / "folder" / "state.pdparams")
    assert files(tmp_path / "new" / "folder") == ["state.pdparams"]
    assert_is_state(load_file(tmp_path / "new" / "folder" / "state.pdparams"))


def test_saved_state_is_an_ordinary_pickle(tmp_path):
    save_file(STATE, tmp_path / "state.pdparams")
    with (tmp_path / "state.pdparams").open("rb") as file:
        assert_is_state(pickle.load(file))


def test_saved_state_is_read_by_paddle(tmp_path):
    save_file(STATE, tmp_path / "state.pdparams")
    found = paddle.load(str(tmp_path / "state.pdparams"))
    assert isinstance(found["model"]["float"], paddle.Tensor)
    assert_is_state(found)


def test_safetensors_are_read_as_they_were_written(tmp_path):
    save_file(ARRAYS, tmp_path / "weights.safetensors")
    assert files(tmp_path) == ["weights.safetensors"]
    assert_same_arrays(load_file(tmp_path / "weights.safetensors"), ARRAYS)


def test_saved_safetensors_are_read_by_their_own_library(tmp_path):
    from safetensors.numpy import load_file as load

    save_file(ARRAYS, tmp_path / "weights.safetensors")
    assert_same_arrays(load(tmp_path / "weights.safetensors"), ARRAYS)


def test_safetensors_in_the_other_byte_order_keep_their_values(tmp_path):
    save_file({"w": np.array([1.5, -2.0], ">f4")}, tmp_path / "weights.safetensors")
    assert load_file(tmp_path / "weights.safetensors")["w"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("state", "part"),
    [
        ({"model": {}}, "'model'"),
        ({"w": np.zeros(1), "epoch": 3}, "'epoch'"),
        ({"w": np.array([{}], object)}, "cannot hold"),
        ({"w": np.array(["text"])}, "cannot hold"),
        ({"w": np.zeros(2, np.clongdouble)}, "cannot hold"),
    ],
    ids=["nested", "number", "objects", "texts", "long complex"],
)
def test_safetensors_that_cannot_hold_a_state_say_so(tmp_path, state, part):
    save_file(ARRAYS, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as caught:
        save_file(state, tmp_path / "w.safetensors")
    assert_one_line(caught.value, part, "save as .pdparams")
    assert files(tmp_path) == ["w.safetensors"]
    assert_same_arrays(load_file(tmp_path / "w.safetensors"), ARRAYS)


def safetensors_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


WRONG_SAFETENSORS = {
    "empty": b"",
    "text": b"not a checkpoint\n",
    "pickle": pickle.dumps({"a": np.zeros(3)}, 4),
    "header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "no JSON": safetensors_of(b"{nothing"),
    "data missing": safetensors_of({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)),
    "shape larger than the data": safetensors_of(
        {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}, bytes(8)
    ),
    "shape that overflows": safetensors_of({"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}, b""),
    "overlapping": safetensors_of(
        {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}, bytes(8)
    ),
    "unknown dtype": safetensors_of({"w": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "dtype that NumPy lacks": safetensors_of({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
}


@pytest.mark.parametrize("name", WRONG_SAFETENSORS)
def test_wrong_safetensors_are_refused(tmp_path, name):
    (tmp_path / "w.safetensors").write_bytes(WRONG_SAFETENSORS[name])
    with pytest.raises(UserError) as caught:
        load_file(tmp_path / "w.safetensors")
    assert_one_line(caught.value, "refused to load", tmp_path / "w.safetensors", "it is damaged or")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_safetensors_are_refused(tmp_path, kept):
    save_file(ARRAYS, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UserError, match=r"refused to load .*w\.safetensors: it is damaged"):
        load_file(tmp_path / "w.safetensors")


# ---- names


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_suffix_may_be_left_out(tmp_path, suffix):
    (tmp_path / "epoch_0.5").mkdir()
    save_file(ARRAYS, tmp_path / f"epoch_0.5{suffix}")
    for path in (tmp_path / "epoch_0.5", str(tmp_path / "epoch_0.5"), tmp_path / f"epoch_0.5{suffix}"):
        assert locate_file(path) == tmp_path / f"epoch_0.5{suffix}"
        assert_same_arrays(load_file(path), ARRAYS)


def test_home_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(ARRAYS, tmp_path / "weights.pdparams")
    assert_same_arrays(load_file("~/weights"), ARRAYS)


def test_file_without_any_suffix_is_read(tmp_path):
    save_file(ARRAYS, tmp_path / "weights")
    assert files(tmp_path) == ["weights"]
    assert_same_arrays(load_file(tmp_path / "weights"), ARRAYS)


@pytest.mark.parametrize("name", ["none", "none.pdparams", "none.safetensors", "no/folder/x", "."])
def test_missing_file_is_said(tmp_path, name):
    with pytest.raises(UserError) as caught:
        load_file(tmp_path / name)
    assert_one_line(caught.value, f"no checkpoint at {tmp_path / name}", ".pdparams", ".safetensors")


@pytest.mark.parametrize("value", [[ARRAYS], 3, None, "text"], ids=repr)
def test_pickle_of_something_else_than_a_dict_is_refused(tmp_path, value):
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(value, 4))
    with pytest.raises(UserError, match=f"it holds a {type(value).__name__}, not a dict of weights"):
        load_file(tmp_path / "w.pdparams")


# ---- damage


@pytest.mark.parametrize("position", [0, 1, 5, 0.1, 0.5, 0.9, -13, -12, -8, -4, -1])
def test_flipped_bit_is_found(tmp_path, position):
    save_file(STATE, tmp_path / "state.pdparams")
    data = bytearray((tmp_path / "state.pdparams").read_bytes())
    data[position if isinstance(position, int) else int(position * len(data))] ^= 16
    (tmp_path / "state.pdparams").write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_file(tmp_path / "state.pdparams")
    assert_one_line(caught.value, tmp_path / "state.pdparams", "damaged")


@pytest.mark.parametrize("lost", [1, 4, 11, 13, 100, 1000])
def test_truncation_is_found(tmp_path, lost):
    save_file(STATE, tmp_path / "state.pdparams")
    data = (tmp_path / "state.pdparams").read_bytes()
    (tmp_path / "state.pdparams").write_bytes(data[:-lost])
    with pytest.raises(UserError, match=r"state.pdparams: it is (damaged|truncated)"):
        load_file(tmp_path / "state.pdparams")


def test_checksum_has_the_last_word(tmp_path):
    save_file(STATE, tmp_path / "state.pdparams")
    data = bytearray((tmp_path / "state.pdparams").read_bytes())
    data[20:30] = b"cos\nsystem"
    (tmp_path / "state.pdparams").write_bytes(data)
    with pytest.raises(UserError, match="checksum does not fit: the file is damaged; use an older checkpoint"):
        load_file(tmp_path / "state.pdparams")


def test_bytes_behind_the_end_are_found(tmp_path):
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({"a": 1}, 4) + b"more")
    with pytest.raises(UserError, match="damaged: 4 bytes follow its end"):
        load_file(tmp_path / "w.pdparams")


# ---- writing that fails


class FailsToPickle:
    def __reduce__(self):
        raise ValueError("no")


@pytest.mark.parametrize("exists", [True, False])
def test_state_that_cannot_be_pickled_leaves_the_old_file(tmp_path, exists):
    path = tmp_path / "state.pdparams"
    if exists:
        save_file(STATE, path)
    with pytest.raises(ValueError, match="no"):
        save_file({"model": np.zeros(100_000), "late": FailsToPickle()}, path)
    assert files(tmp_path) == (["state.pdparams"] if exists else [])
    if exists:
        assert_is_state(load_file(path))


@contextlib.contextmanager
def file_size_limit(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_space_is_asked_for(error, path):
    assert_one_line(
        error, f"cannot write {path}", " MB beside the old one: free some space", "-output", "written before are intact"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("limit", [0, 5_000, 500_000], ids="{} bytes".format)
def test_limit_of_the_file_size_leaves_the_old_file(tmp_path, suffix, limit):
    path = tmp_path / f"state{suffix}"
    save_file(ARRAYS, path)
    with file_size_limit(limit), pytest.raises(UserError) as caught:
        save_file({"new": np.ones(limit + 1000, np.uint8)}, path)
    assert_space_is_asked_for(caught.value, path)
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert files(tmp_path) == [path.name]
    assert_same_arrays(load_file(path), ARRAYS)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk_leaves_the_old_file(small_disk, suffix):
    path = small_disk / f"state{suffix}"
    save_file(ARRAYS, path)
    for size in (1_000_000, 262_144 - path.stat().st_size):
        with pytest.raises(UserError) as caught:
            save_file({"new": np.ones(size, np.uint8)}, path)
        assert_space_is_asked_for(caught.value, path)
        assert os.strerror(errno.ENOSPC) in str(caught.value)
        assert files(small_disk) == [path.name]
        assert_same_arrays(load_file(path), ARRAYS)
    save_file({"new": np.ones(1000, np.uint8)}, path)
    assert load_file(path)["new"].sum() == 1000


def test_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "state.pdparams", tmp_path / "file" / "deep" / "state.pdparams"):
        with pytest.raises(UserError) as caught:
            save_file(STATE, path)
        assert_one_line(caught.value, f"cannot write {path}", "-output")
    assert (tmp_path / "file").read_text() == "mine"


def test_folder_in_the_place_of_the_file_is_said(tmp_path):
    (tmp_path / "state.pdparams").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*state\.pdparams: Is a directory"):
        save_file(STATE, tmp_path / "state.pdparams")
    assert files(tmp_path) == ["state.pdparams"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot write .*state\.pdparams: Permission denied"):
        save_file(STATE, tmp_path / "state.pdparams")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("exists", [True, False])
def test_disk_that_gives_back_something_else_is_found(tmp_path, monkeypatch, suffix, exists):
    path = tmp_path / f"state{suffix}"
    if exists:
        save_file(ARRAYS, path)

    def corrupt(descriptor):
        os.pwrite(descriptor, b"?", 100)

    monkeypatch.setattr(os, "fsync", corrupt)
    with pytest.raises(UserError, match="read back differs from what was written; the disk may be failing"):
        save_file({"new": np.ones(1000, np.uint8)}, path)
    monkeypatch.undo()
    assert files(tmp_path) == ([path.name] if exists else [])
    if exists:
        assert_same_arrays(load_file(path), ARRAYS)


def test_target_changes_only_after_everything_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "state.pdparams"
    save_file({"epoch": 1}, path)
    seen, real = [], os.fsync

    def spy(descriptor):
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), load_file(path)["epoch"]))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    save_file({"epoch": 2}, path)
    assert seen == [(False, 1), (True, 2)]


WRITER = """
import sys
import numpy as np
from common.checkpoints.file_format import save_file

path, version = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
while True:
    version += 1
    save_file({"version": version, "array": np.full(1 << 21, version)}, path)
"""


def start_writer(path, version):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(version)], cwd=ROOT, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


def test_kill_in_the_middle_of_writing_leaves_a_whole_file(tmp_path):
    path, rng = tmp_path / "state.pdparams", random.Random(0)
    save_file({"version": 0, "array": np.zeros(1 << 21, int)}, path)
    version, left_over = 0, 0
    for turn in range(60):
        if turn >= 10 and version and left_over:
            break
        with start_writer(path, version) as writer:
            time.sleep(rng.uniform(0.02, 0.2) * (1 + turn // 10))  # a busy machine writes nothing in so short a time
            writer.send_signal(signal.SIGKILL)
        state = load_file(path)
        assert state["version"] >= version
        assert (state["array"] == state["version"]).all()
        assert state["array"].size == 1 << 21
        version = state["version"]
        left_over += files(tmp_path) != ["state.pdparams"]
        remove_leftovers(tmp_path)
        assert files(tmp_path) == ["state.pdparams"]
    assert version > 0
    assert left_over > 0


def test_only_leftovers_are_removed(tmp_path):
    for name in ("state.pdparams", "notes.tmp", ".hidden", ".state.pdparams.17.tmp"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert files(tmp_path) == [".hidden", "notes.tmp", "state.pdparams"]
    remove_leftovers(tmp_path / "no such folder")


def test_file_may_be_read_while_it_is_replaced(tmp_path):
    path, stop = tmp_path / "state.pdparams", threading.Event()
    save_file({"array": np.zeros(1000)}, path)

    def write():
        for version in range(10_000):
            if not stop.is_set():
                save_file({"array": np.full(1000, version)}, path)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            array = load_file(path)["array"]
            assert (array == array[0]).all()
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, suffix, umask, mode):
    before = os.umask(umask)
    try:
        save_file(ARRAYS, tmp_path / f"state{suffix}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / f"state{suffix}").stat().st_mode) == mode


# ---- size


def available_memory():
    return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024


@pytest.mark.alone
@pytest.mark.slow
def test_file_above_4_gib(tmp_path):
    if available_memory() < 12e9 or shutil.disk_usage(tmp_path).free < 10e9:
        pytest.skip("needs 12 GB of free memory and 10 GB of free disk")
    marks = [0, 1 << 31, 1 << 32, 4_499_999_999]
    array = np.zeros(4_500_000_000, np.uint8)
    array[marks] = 7
    path = tmp_path / "state.pdparams"
    save_file({"array": array}, path)
    del array
    try:
        assert path.stat().st_size > 4_500_000_000
        found = load_file(path)["array"]
        assert found.shape == (4_500_000_000,)
        assert found[marks].tolist() == [7] * 4
        assert np.count_nonzero(found) == 4
        with path.open("r+b") as file:
            file.seek(4_400_000_000)
            file.write(b"?")
        del found
        with pytest.raises(UserError, match="damaged"):
            load_file(path)
    finally:
        path.unlink()

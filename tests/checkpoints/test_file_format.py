"""A checkpoint file is whole or absent, whatever happens while it is written, and damage is found."""

import contextlib
import errno
import json
import os
import pickle
import random
import resource
import signal
import stat
import struct
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest

from common.checkpoints.file_format import load_file, locate_file, save_file
from common.errors import UserError
from tests.helpers.programs import ROOT

ARRAYS = {
    "float": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "half": np.array([0.1, -np.inf, np.nan], np.float16),
    "integers": np.array([2**62, -1]),
    "truth": np.array([True, False]),
    "0-d": np.array(3.5, np.float32),
    "empty": np.zeros((2, 0, 3), np.float32),
    "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(10, dtype=np.int16)[::3],
}
STATE = {
    "model": ARRAYS,
    "optimizer": {"head.weight/moment1": np.ones(3, np.float32)},
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


def test_a_state_is_read_by_us_by_pickle_and_by_paddle(tmp_path):
    path = tmp_path / "new" / "folder" / "state.pdparams"
    save_file(STATE, path)
    assert files(path.parent) == ["state.pdparams"]
    assert_is_state(load_file(path))
    assert_is_state(pickle.loads(path.read_bytes()))
    found = paddle.load(str(path))
    assert isinstance(found["model"]["float"], paddle.Tensor)
    assert_is_state(found)


def test_safetensors_are_read_by_us_and_by_their_own_library(tmp_path):
    from safetensors.numpy import load_file as load

    save_file(ARRAYS, tmp_path / "weights.safetensors")
    assert_same_arrays(load_file(tmp_path / "weights.safetensors"), ARRAYS)
    assert_same_arrays(load(tmp_path / "weights.safetensors"), ARRAYS)


@pytest.mark.parametrize(
    ("state", "part"),
    [({"model": {}}, "'model'"), ({"w": np.array(["text"])}, "cannot contain")],
    ids=["nested", "texts"],
)
def test_a_state_that_safetensors_cannot_hold_is_refused(tmp_path, state, part):
    save_file(ARRAYS, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as caught:
        save_file(state, tmp_path / "w.safetensors")
    assert_one_line(caught.value, part, "save as .pdparams")
    assert_same_arrays(load_file(tmp_path / "w.safetensors"), ARRAYS)


def safetensors_of(data=b"", **tensor):
    text = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **tensor}}).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**60) + b"{}",
        safetensors_of(bytes(4)),
        safetensors_of(bytes(8), shape=[2**40]),
        safetensors_of(bytes(4), shape=[1] * 100, data_offsets=[0, 4]),
        safetensors_of(shape=[0, 2**62, 8], data_offsets=[0, 0]),
    ],
    ids=["header of 2^60 bytes", "data missing", "large shape", "many dimensions", "large side of nothing"],
)
def test_damaged_safetensors_are_refused(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_file(tmp_path / "w.safetensors")
    assert_one_line(caught.value, "refused to load", tmp_path / "w.safetensors", "it is damaged or")


def all_values_of(dtype, bits):
    """A file with every number of a type, and their bits."""
    data = bits.tobytes()
    return safetensors_of(data, dtype=dtype, shape=[len(bits)], data_offsets=[0, len(data)])


@pytest.mark.parametrize(
    ("dtype", "name", "bits"),
    [
        ("BF16", "bfloat16", np.arange(1 << 16, dtype=np.uint16)),
        ("F8_E4M3", "float8_e4m3fn", np.arange(256, dtype=np.uint8)),
        ("F8_E5M2", "float8_e5m2", np.arange(256, dtype=np.uint8)),
    ],
)
def test_types_of_deep_learning_in_safetensors_become_float32(tmp_path, dtype, name, bits):
    types = pytest.importorskip("ml_dtypes")
    (tmp_path / "w.safetensors").write_bytes(all_values_of(dtype, bits))
    found = load_file(tmp_path / "w.safetensors")["w"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, bits.view(getattr(types, name)).astype(np.float32))


def test_types_without_a_conversion_are_named(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(safetensors_of(bytes(4), dtype="F8_E8M0", shape=[4], data_offsets=[0, 4]))
    with pytest.raises(UserError, match="its array 'w' has the type F8_E8M0; convert it to float32"):
        load_file(tmp_path / "w.safetensors")


def test_the_suffix_and_the_home_folder_may_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "epoch_0.5").mkdir()
    save_file(ARRAYS, tmp_path / "epoch_0.5.safetensors")
    for path in (tmp_path / "epoch_0.5", "~/epoch_0.5", tmp_path / "epoch_0.5.safetensors"):
        assert locate_file(path) == tmp_path / "epoch_0.5.safetensors"


def test_a_missing_file_is_named(tmp_path):
    for name in (tmp_path / "none", tmp_path / "no/folder/x.pdparams", "~no_such_user/x.pdparams"):
        with pytest.raises(UserError) as caught:
            load_file(name)
        assert_one_line(caught.value, f"checkpoint {name} does not exist", ".pdparams", ".safetensors")
    with pytest.raises(UserError, match=r"^\. is a folder; give a file in it"):
        load_file(".")


# ---- damage


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (pickle.dumps([1, 2], 4), "it is a list, not a dict of weights"),
        (pickle.dumps({"a": 1}, 4) + b"more", "damaged: 4 bytes follow the end"),
        (b"not a checkpoint\n", "not a pickle file; give weights that paddle.save wrote"),
        (b"hello\n", "not a pickle (Memo value not found at index 101); copy it again, or give weights"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content, part):
    (tmp_path / "w.pdparams").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_file(tmp_path / "w.pdparams")
    assert_one_line(caught.value, tmp_path / "w.pdparams", part)


@pytest.mark.parametrize("lost", [1, 300])
def test_truncation_is_found(tmp_path, lost):
    save_file(STATE, tmp_path / "state.pdparams")
    data = (tmp_path / "state.pdparams").read_bytes()
    (tmp_path / "state.pdparams").write_bytes(data[:-lost])
    with pytest.raises(UserError, match=r"state.pdparams: it is (damaged|truncated)"):
        load_file(tmp_path / "state.pdparams")


def test_the_checksum_has_the_last_word(tmp_path):
    save_file(STATE, tmp_path / "state.pdparams")
    data = bytearray((tmp_path / "state.pdparams").read_bytes())
    data[20:30] = b"cos\nsystem"
    (tmp_path / "state.pdparams").write_bytes(data)
    with pytest.raises(UserError, match="checksum is wrong: it is damaged; use an older checkpoint"):
        load_file(tmp_path / "state.pdparams")


# ---- failures of writing


class FailsToPickle:
    def __reduce__(self):
        raise ValueError("no")


@contextlib.contextmanager
def file_size_limit(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_asks_for_space(error, path):
    assert_one_line(
        error, f"cannot write {path}", "free disk space", "another folder", "Earlier checkpoints are intact"
    )


def test_a_state_that_cannot_be_pickled_leaves_the_old_file(tmp_path):
    path = tmp_path / "state.pdparams"
    save_file(STATE, path)
    with pytest.raises(ValueError, match="no"):
        save_file({"model": np.zeros(100_000), "late": FailsToPickle()}, path)
    assert files(tmp_path) == ["state.pdparams"]
    assert_is_state(load_file(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_limit_of_the_file_size_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"state{suffix}"
    save_file(ARRAYS, path)
    with file_size_limit(5_000), pytest.raises(UserError) as caught:
        save_file({"new": np.ones(6_000, np.uint8)}, path)
    assert_asks_for_space(caught.value, path)
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert files(tmp_path) == [path.name]
    assert_same_arrays(load_file(path), ARRAYS)


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.pdparams").mkdir()
    for path in (tmp_path / "file" / "deep" / "state.pdparams", tmp_path / "folder.pdparams"):
        with pytest.raises(UserError) as caught:
            save_file(STATE, path)
        assert_one_line(caught.value, f"cannot write {path}", "; choose another folder. ")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_gives_back_other_bytes_is_found(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"state{suffix}"
    save_file(ARRAYS, path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.pwrite(descriptor, b"?", 100))
    with pytest.raises(UserError, match="read back differs from the data written; the disk may be defective"):
        save_file({"new": np.ones(1000, np.uint8)}, path)
    monkeypatch.undo()
    assert files(tmp_path) == [path.name]
    assert_same_arrays(load_file(path), ARRAYS)


def test_the_target_changes_only_after_everything_is_on_the_disk(tmp_path, monkeypatch):
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


@pytest.mark.slow
def test_a_kill_in_the_middle_of_writing_leaves_a_whole_file(tmp_path):
    path, rng = tmp_path / "state.pdparams", random.Random(0)
    save_file({"version": 0, "array": np.zeros(1 << 21, int)}, path)
    version, left_over = 0, 0
    for turn in range(60):
        if turn >= 10 and version and left_over:
            break
        command = [sys.executable, "-c", WRITER, str(path), str(version)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            time.sleep(rng.uniform(0.02, 0.2) * (1 + turn // 10))  # a busy machine writes nothing in so short a time
            writer.send_signal(signal.SIGKILL)
        state = load_file(path)
        assert state["version"] >= version
        assert (state["array"] == state["version"]).all()
        version = state["version"]
        left_over += files(tmp_path) != ["state.pdparams"]
        for leftover in tmp_path.glob(".state.pdparams.*.tmp"):
            leftover.unlink()
        assert files(tmp_path) == ["state.pdparams"]
    assert version > 0
    assert left_over > 0


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_file(ARRAYS, tmp_path / "state.pdparams")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state.pdparams").stat().st_mode) == 0o640

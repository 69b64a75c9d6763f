"""Files of ``torch.save`` are read as they were written; broken and hostile ones are refused."""

import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from common.errors import UserError
from tests.helpers.programs import ROOT
from tests.helpers.torch_files import Storage, Tensor, write_torch_file
from tools.conversion.torch_file import load_torch_file


@pytest.fixture
def save(tmp_path):
    def write(value, *arguments, **options):
        write_torch_file(tmp_path / "w.pth", value, *arguments, **options)
        return tmp_path / "w.pth"

    return write


ARRAYS = {
    "weight": np.arange(6, dtype="f4").reshape(2, 3),
    "double": np.array([0.1, -0.0, np.inf]),
    "half": np.array([[1.5]], "f2"),
    "count": np.array(7),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3), "f4"),
}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_state_dict_is_read_bit_by_bit(save):
    state = OrderedDict(ARRAYS)
    state._metadata = OrderedDict({"": {"version": 1}})  # as Module.state_dict adds it
    assert_same(load_torch_file(save(state)), ARRAYS)


def test_training_state_is_read(save):
    found = load_torch_file(save({"model": OrderedDict(ARRAYS), "epoch": 3, "lr": [0.1, None]}))
    assert_same(found["model"], ARRAYS)
    assert (found["epoch"], found["lr"]) == (3, [0.1, None])


def test_views_share_one_storage(save):
    storage = Storage("FloatStorage", 0, 12)
    whole, transposed = Tensor(storage, 0, (3, 4), (4, 1)), Tensor(storage, 4, (4, 2), (1, 4))
    numbers = np.arange(12, dtype="f4")
    found = load_torch_file(save({"whole": whole, "part": transposed}, [numbers]))
    assert_same(found, {"whole": numbers.reshape(3, 4), "part": numbers.reshape(3, 4)[1:].T})
    assert np.shares_memory(found["whole"], found["part"])


def test_bfloat16_becomes_float32(save):
    numbers = np.array([1.0, -2.5, 3e38], "f4").view("u4") >> 16
    tensor = Tensor(Storage("BFloat16Storage", 0, 3), 0, (3,), (1,))
    found = load_torch_file(save({"w": tensor}, [numbers.astype("u2")]))["w"]
    np.testing.assert_array_equal(found, (numbers << 16).astype("u4").view("f4"), strict=True)


def test_big_endian_file_is_read(save):
    tensor = Tensor(Storage("FloatStorage", 0, 2), 0, (2,), (1,))
    path = save({"w": tensor}, [np.array([1, 2], ">f4")], {"byteorder": b"big"})
    assert_same(load_torch_file(path), {"w": np.array([1, 2], "f4")})


class Command:
    def __reduce__(self):
        return os.system, ("touch canary",)


def of_storage(offset, shape, strides, kind="FloatStorage"):
    return {"w": Tensor(Storage(kind, 0, 6), offset, shape, strides)}


SIX = [np.zeros(6, "f4")]
HOSTILE = {
    "command": ({"w": Command()}, {}, "it wants to use '(posix|nt).system'"),
    "beyond the storage": (of_storage(0, (7,), (1,)), {}, r"shape \(7,\) in a storage of 6"),
    "offset beyond": (of_storage(4, (3,), (1,)), {}, "in a storage of 6"),
    "strides beyond": (of_storage(0, (2, 3), (5, 1)), {}, "in a storage of 6"),
    "before the storage": (of_storage(-1, (2,), (1,)), {}, "impossible shape"),
    "negative stride": (of_storage(5, (2,), (-1,)), {}, "impossible shape"),
    "expanded": (of_storage(0, (1 << 40,), (0,)), {}, "in a storage of 6"),
    "strides for another shape": (of_storage(0, (2, 3), (1,)), {}, "impossible shape"),
    "shape of a text": (of_storage(0, ("2",), (1,)), {}, "impossible shape"),
    "unknown type": (of_storage(0, (2,), (1,), "UntypedStorage"), {}, "'torch.UntypedStorage'"),
    "no storage": ({"w": Tensor(None, 0, (2,), (1,))}, {}, "without a storage"),
    "storage alone": ({"w": Tensor}, {}, "it wants to use"),
    "missing entry": (of_storage(0, (2,), (1,)), {"leave_out": ["data/0"]}, "the entry 'data/0' is missing"),
    "half a number": (of_storage(0, (2,), (1,)), {"storages": [b"12345"]}, "no whole number"),
    "compressed": (of_storage(0, (2,), (1,)), {"compression": zipfile.ZIP_DEFLATED}, "compressed"),
    "no pickle": ({}, {"leave_out": ["data.pkl"]}, "no data.pkl"),
    "list": ([1], {}, "it holds a list, not a dict"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_broken_or_hostile_file_is_refused(save, tmp_path, monkeypatch, name):
    value, options, message = HOSTILE[name]
    path = save(value, **{"storages": SIX, **options})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"refused to load {path}: .*{message}.*torch.save"):
        load_torch_file(path)
    assert not (tmp_path / "canary").exists()


def test_every_truncation_is_refused(save):
    path = save(OrderedDict(ARRAYS))
    data = path.read_bytes()
    for end in range(0, len(data), 23):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match="refused to load"):
            load_torch_file(path)


def test_flipped_bits_give_the_numbers_or_a_refusal(save):
    """The zip has a checksum of each entry; only bits of its directory may go unnoticed."""
    path = save({"weight": ARRAYS["weight"]})
    data, refused = path.read_bytes(), 0
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        try:
            np.testing.assert_array_equal(load_torch_file(path)["weight"], ARRAYS["weight"], strict=True)
        except UserError:
            refused += 1
    assert refused > len(data) / 2


def test_other_files_are_refused(tmp_path):
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"w": 1}, 2))
    with pytest.raises(UserError, match=r"no zip as PyTorch writes since version 1\.6"):
        load_torch_file(tmp_path / "old.pth")
    with pytest.raises(UserError, match="cannot read"):
        load_torch_file(tmp_path / "missing.pth")


WRITE = """
import sys

import numpy as np, torch

torch.manual_seed(0)
layers = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(5, 2, dtype=torch.float64)
model = torch.nn.Sequential(*layers)
tied = torch.arange(12.0).reshape(3, 4)
state = {
    **model.state_dict(), "transposed": tied.t(), "row": tied[1], "half": tied.half(), "brain": tied.bfloat16(),
    "parameter": torch.nn.Parameter(tied), "mask": tied > 3, "empty": tied[:0],
}
optimizer = torch.optim.AdamW(model.parameters()).state_dict()
torch.save({"model": model.state_dict(), "optimizer": optimizer, "more": state, "epoch": 3}, sys.argv[1] + "/w.pth")
state["brain"] = state["brain"].float()  # NumPy has no bfloat16
np.savez(sys.argv[1] + "/w.npz", **{name: tensor.detach().numpy() for name, tensor in state.items()})
"""


def test_file_of_torch_itself_is_read_bit_by_bit(tmp_path):
    python = ROOT / ".venv-peers" / "bin" / "python"
    if not python.exists():
        pytest.skip("PyTorch is not set up in .venv-peers")
    subprocess.run([python, "-c", WRITE, str(tmp_path)], check=True)
    found = load_torch_file(tmp_path / "w.pth")
    expected = dict(np.load(tmp_path / "w.npz"))
    assert found["epoch"] == 3
    assert_same(found["more"], expected)
    assert_same(found["model"], {name: expected[name] for name in found["model"]})
    assert len(found["model"]) == 9

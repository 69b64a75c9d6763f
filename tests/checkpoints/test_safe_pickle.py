"""Weights are read as they were written, and files that want something else are refused before anything happens."""

import contextlib
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import pytest

from common.checkpoints.file_format import load_file, save_file
from common.checkpoints.safe_pickle import load_arrays
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = np.array([[-3, -1, 0], [1, 2, 100]])
DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g", "c8", "c16", "G"]
BIG_ENDIAN = [">i2", ">u4", ">i8", ">f2", ">f4", ">f8", ">c8"]
SPECIAL = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)
LAYOUTS = {
    "0-d": np.array(7, np.float32),
    "0-d big-endian": np.array(7, ">f8"),
    "empty": np.zeros(0, np.float32),
    "empty 3-d": np.zeros((2, 0, 3), np.int64),
    "Fortran": np.asfortranarray(NUMBERS),
    "Fortran 3-d": np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
    "strided": np.arange(20, dtype=np.uint8)[3::4],
    "reversed": np.arange(6, dtype=np.float32)[::-1],
    "broadcast": np.broadcast_to(np.float32(2), (3, 2)),
    "special values": SPECIAL,
    "beyond one frame": np.arange(50_000, dtype=np.float32),
}
ARRAYS = {code: NUMBERS.astype(code) for code in DTYPES + BIG_ENDIAN} | LAYOUTS


def load(data):
    return load_arrays(io.BytesIO(data), len(data))


def assert_same_bits(found, array):
    assert isinstance(found, np.ndarray)
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ARRAYS)
def test_array_is_read_bit_by_bit(name, protocol):
    assert_same_bits(load(pickle.dumps(ARRAYS[name], protocol)), ARRAYS[name])


def with_numpy_spelled(data, core):
    """The same pickle as another major version of NumPy writes it; small enough for a single frame, which goes."""
    if data[2:3] == pickle.FRAME:
        data = data[:2] + data[11:]
    for name in ("multiarray", "numeric"):
        for old in ("numpy.core", "numpy._core"):
            new, before = f"{core}.{name}".encode(), f"{old}.{name}".encode()
            data = data.replace(b"c" + before + b"\n", b"c" + new + b"\n")
            data = data.replace(b"\x8c" + bytes([len(before)]) + before, b"\x8c" + bytes([len(new)]) + new)
    return data


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_both_spellings_of_numpy_are_read(core, protocol):
    value = {"array": NUMBERS, "scalar": np.float32(1.5)}
    data = with_numpy_spelled(pickle.dumps(value, protocol), core)
    assert f"{core}.".encode() in data
    other = {"numpy.core": b"numpy._core.", "numpy._core": b"numpy.core."}[core]
    assert other not in data
    assert_same_bits(load(data)["array"], NUMBERS)
    assert load(data)["scalar"] == 1.5


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "scalar",
    [
        np.bool_(1),
        np.int8(-3),
        np.uint64(2**64 - 1),
        np.float16(0.1),
        np.float64(0.1),
        np.complex64(2j),
        np.longdouble(3),
    ],
    ids=lambda scalar: type(scalar).__name__,
)
def test_numpy_scalar_is_read_bit_by_bit(scalar, protocol):
    found = load(pickle.dumps(scalar, protocol))
    assert type(found) is type(scalar)
    assert found.tobytes() == scalar.tobytes()


SHARED = [1, 2]
PLAIN = {
    "None": None,
    "truth": [True, False],
    "integers": [0, -1, 255, 256, 65_535, 65_536, 2**31, -(2**31), 2**63, -(2**100), 2**1000],
    "floats": [0.0, -0.0, 1.5, 1e300, float("inf")],
    "texts": ["", "name", "ü" * 300, "権", "x" * 70_000],
    "bytes": [b"", b"abc", bytes(range(256)), b"\xff" * 70_000],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (("a", 1),)],
    "empty": [[], {}, ()],
    "nested": {"a": [{"b": ({"c": [None]},)}]},
    "long list": list(range(5000)),
    "class names": {number: f"class {number}" for number in range(1000)},
    "many names": {f"name {number}": number for number in range(5000)},
    "shared": [SHARED, SHARED, {"again": SHARED}],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_are_read(name, protocol):
    found = load(pickle.dumps(PLAIN[name], protocol))
    assert found == PLAIN[name]
    assert repr(found) == repr(PLAIN[name])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_ordered_dict_becomes_a_dict_in_the_same_order(protocol):
    found = load(pickle.dumps(OrderedDict([("b", 1), ("a", NUMBERS)]), protocol))
    assert type(found) is dict
    assert list(found) == ["b", "a"]
    assert_same_bits(found["a"], NUMBERS)


def test_reader_stops_at_the_end_of_the_pickle():
    file = io.BytesIO(pickle.dumps({"a": 1}, 4) + b"more")
    assert load_arrays(file, len(file.getvalue())) == {"a": 1}
    assert file.read() == b"more"


# ---- what Paddle writes


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_state_dict_saved_by_paddle(tmp_path, protocol):
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4), paddle.nn.Linear(300, 300))
    paddle.save(layer.state_dict(), str(tmp_path / "w.pdparams"), protocol=protocol)
    found = load_file(tmp_path / "w.pdparams")
    assert list(found) == list(layer.state_dict())
    for name, tensor in layer.state_dict().items():
        assert_same_bits(found[name], tensor.numpy())


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_tensors_in_nested_containers_saved_by_paddle(tmp_path, protocol, dtype):
    tensor = paddle.to_tensor(np.arange(6).reshape(2, 3)).astype(dtype)
    value = {
        "model": {"inner": {"w": tensor}, "list": [tensor, "text"], "scalar": tensor[1, 2]},
        "dense": tensor.value().get_tensor(),
        "epoch": 3,
        "name": None,
    }
    paddle.save(value, str(tmp_path / "w.pdparams"), protocol=protocol)
    found = load_file(tmp_path / "w.pdparams")
    for array in (found["model"]["inner"]["w"], found["model"]["list"][0], found["dense"]):
        assert_same_bits(array, tensor.numpy())
    assert_same_bits(np.asarray(found["model"]["scalar"]), tensor.numpy()[1, 2])
    assert (found["model"]["list"][1], found["epoch"], found["name"]) == ("text", 3, None)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_optimizer_state_saved_by_paddle(tmp_path, protocol):
    layer = paddle.nn.Linear(3, 2)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(0.1, 10)
    adam = paddle.optimizer.AdamW(schedule, parameters=layer.parameters())
    layer(paddle.ones([1, 3])).sum().backward()
    adam.step()
    paddle.save({"opt": adam.state_dict()}, str(tmp_path / "w.pdparams"), protocol=protocol)
    found = load_file(tmp_path / "w.pdparams")["opt"]
    for name, tensor in adam.state_dict().items():
        if isinstance(tensor, paddle.Tensor):
            assert_same_bits(found[name], tensor.numpy())
    assert found["LR_Scheduler"] == adam.state_dict()["LR_Scheduler"]


SLICES = {"w@@.0": np.arange(5.0), "w@@.1": np.arange(5.0, 10.0), "w@@.2": np.arange(10.0, 12.0)}
SLICED = {"b": NUMBERS, **SLICES, "UnpackBigParamInfor@@": {"w": {"OriginShape": (3, 4), "slices": list(SLICES)}}}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_array_that_paddle_sliced_is_joined(tmp_path, protocol):
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(SLICED, protocol))
    found = load_file(tmp_path / "w.pdparams")
    assert sorted(found) == ["b", "w"]
    assert_same_bits(found["w"], np.arange(12.0).reshape(3, 4))


# ---- what strangers write

PROTO = b"\x80\x04"


def plain(value):
    """The operations that put a value on the stack, without any use of the memo."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 3)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()[2:-1]


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def call(module, name, *arguments):
    return named(module, name) + tuple_of(*arguments) + b"R"


def call_plain(module, name, *arguments):
    return call(module, name, *map(plain, arguments))


def dtype_of(code, order="<", fields=b"NNN"):
    state = plain(3) + plain(order) + fields + plain(-1) * 2 + plain(0)
    return call_plain("numpy", "dtype", code, False, True) + tuple_of(state) + b"b"


def array_of(shape=None, data=None, dtype=None):
    """An array in its oldest spelling, each part of it as operations."""
    shape = plain((2,)) if shape is None else shape
    data = plain(bytes(8)) if data is None else data
    empty = call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), plain((0,)), plain(b"b"))
    return empty + tuple_of(plain(1), shape, dtype or dtype_of("f4"), plain(False), data) + b"b"


def buffer_of(shape, data=None, order=None, *axes):
    """An array in the spelling of protocol 5."""
    data, order = plain(bytes(8)) if data is None else data, plain("C") if order is None else order
    return call("numpy.core.numeric", "_frombuffer", data, dtype_of("f4"), shape, order, *axes)


def doubled(before=b"", after=b"\x86"):
    """A tuple that holds another one twice, which holds another one twice, and so on: 2^60 of them in 420 bytes."""
    operations = b")q\x00"
    for level in range(60):
        operations += b"0" + before + b"h%ch%c" % (level, level) + after + b"q%c" % (level + 1)
    return operations


def repeated(operations, times):
    """A list of the results of the same operations."""
    return b"](" + operations * times + b"e"


def os_system(canary):
    return call_plain("os", "system", f"touch {canary}")


def imported(module):
    return call_plain("builtins", "__import__", module)


def zip_of(**files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()


def sharing_hash(count):
    return b"}(" + b"".join(plain(number * (2**61 - 1)) + b"N" for number in range(count)) + b"u"


class Reduced:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class OwnDict(dict):
    pass


# name: (part of the message, operations); what plain pickle would do is to create the canary
RUNNING = {
    "os.system": ("os.system", os_system),
    "what pickle.dumps makes of os.system": (
        f"{os.system.__module__}.system",
        lambda canary: pickle.dumps(Reduced(os.system, f"touch {canary}"), 4)[2:-1],
    ),
    "protocol 0": ("os.system", lambda canary: f"cos\nsystem\n(S'touch {canary}'\ntR".encode()),
    "subprocess.Popen by STACK_GLOBAL": (
        "subprocess.check_call",
        lambda canary: plain("subprocess") + plain("check_call") + b"\x93" + plain((["touch", canary],)) + b"R",
    ),
    "dotted name": (
        "posixpath.os.system",
        lambda canary: plain("posixpath") + plain("os.system") + b"\x93" + plain((f"touch {canary}",)) + b"R",
    ),
    "eval": ("wants to run eval(", lambda canary: call_plain("builtins", "eval", f"open({canary!r}, 'w')")),
    "eval of Python 2": (
        "wants to run eval(",
        lambda canary: b"\x80\x02" + call_plain("__builtin__", "eval", f"open({canary!r}, 'w')"),
    ),
    "eval with data": (
        "wants to run eval(",
        lambda canary: call_plain("builtins", "eval", f"open({canary!r}, 'w') and data", {"data": 1}),
    ),
    "exec": ("builtins.exec", lambda canary: call_plain("builtins", "exec", f"open({canary!r}, 'w')")),
    "open": ("builtins.open", lambda canary: call_plain("builtins", "open", canary, "w")),
    "getattr of __import__": (
        "builtins.getattr",
        lambda canary: (
            call("builtins", "getattr", imported("os"), plain("system")) + plain((f"touch {canary}",)) + b"R"
        ),
    ),
    "timeit": (
        "timeit.timeit",
        lambda canary: call_plain("timeit", "timeit", f"open({canary!r}, 'w')", "pass", time.perf_counter, 1),
    ),
    "numpy.memmap": (
        "numpy.memmap",
        lambda canary: call_plain("numpy", "memmap", canary, "u1", "w+", 0, (1,)),
    ),
    "pickle in a pickle": (
        "pickle.loads",
        lambda canary: call_plain("pickle", "loads", PROTO + os_system(canary) + b"."),
    ),
    "INST": ("operation b'i'", lambda canary: b"(" + plain(f"touch {canary}") + b"ios\nsystem\n"),
    "OBJ": ("os.system", lambda canary: b"(" + named("os", "system") + plain(f"touch {canary}") + b"o"),
    "in a state dict": (
        "os.system",
        lambda canary: b"}(" + plain("w") + array_of() + plain("evil") + os_system(canary) + b"u",
    ),
    "in a nested tuple": ("os.system", lambda canary: b"}" + plain("a") + os_system(canary) + b"\x85\x85s"),
    "as a key": ("os.system", lambda canary: b"}" + os_system(canary) + plain(1) + b"s"),
    "thrown away": ("os.system", lambda canary: os_system(canary) + b"0}"),
    "as the data of an array": ("os.system", lambda canary: array_of(data=os_system(canary))),
    "behind what paddle.save writes": (
        "os.system",
        lambda canary: call("builtins", "tuple", tuple_of(plain("w"), array_of(), os_system(canary))),
    ),
}

INERT = {
    # constructors that would build something else
    "__import__": ("builtins.__import__", lambda: imported("os")),
    "class of this module": (f"{__name__}.OwnDict", lambda: pickle.dumps(OwnDict(a=1), 4)[2:-1]),
    "Counter": ("collections.Counter", lambda: pickle.dumps(Counter("aab"), 4)[2:-1]),
    "defaultdict": ("collections.defaultdict", lambda: pickle.dumps(defaultdict(int), 4)[2:-1]),
    "path": ("pathlib", lambda: pickle.dumps(Path("x"), 4)[2:-1]),
    "function as a value": ("os.system", lambda: named("os", "system")),
    "allowed function as a value": ("builtins.eval instead of a value", lambda: named("builtins", "eval")),
    "allowed function in a list": ("_codecs.encode", lambda: b"]" + named("_codecs", "encode") + b"a"),
    "class of arrays called": ("numpy.ndarray itself", lambda: call_plain("numpy", "ndarray", (10**9,))),
    "eval with another name": ("eval", lambda: call_plain("builtins", "eval", "data", {"data": 1, "x": 2})),
    "eval without names": ("eval('data')", lambda: call_plain("builtins", "eval", "data")),
    "OBJ of an allowed class": ("operation b'o'", lambda: b"(" + named("builtins", "tuple") + b"o"),
    "INST of an allowed class": ("operation b'i'", lambda: b"(ibuiltins\ntuple\n"),
    "eval of a list": ("eval(a list)", lambda: call_plain("builtins", "eval", ["data"], {"data": 1})),
    "tuple of a dict": ("tuple", lambda: call_plain("builtins", "tuple", {"a": 1})),
    "encode to utf-32": ("encodes", lambda: call_plain("_codecs", "encode", "x", "utf-32")),
    "encode bytes": ("encodes", lambda: call_plain("_codecs", "encode", b"x", "latin1")),
    "OrderedDict from items": ("OrderedDict", lambda: call_plain("collections", "OrderedDict", [["a", 1]])),
    "name with a line break and escapes": ("os\\nsystem\\x1b", lambda: plain("os\nsystem\x1b[2J") * 2 + b"\x93"),
    "name of a million letters": ("which no weights need", lambda: plain("os") + plain("x" * 10**6) + b"\x93"),
    "calling a value": ("calls something", lambda: plain("os.system") + plain(("ls",)) + b"R"),
    "calling with a list": ("calls something", lambda: named("builtins", "tuple") + plain(["ls"]) + b"R"),
    # operations that weights do not need
    "persistent id": ("operation b'P'", lambda: b"Pos.system\n"),
    "binary persistent id": ("operation b'Q'", lambda: plain("os.system") + b"Q"),
    "EXT1": ("operation b'\\x82'", lambda: b"\x82\x01"),
    "EXT2": ("operation b'\\x83'", lambda: b"\x83\x01\x00"),
    "EXT4": ("operation b'\\x84'", lambda: b"\x84\x01\x00\x00\x00"),
    "NEWOBJ": ("operation b'\\x81'", lambda: named("builtins", "tuple") + b")\x81"),
    "NEWOBJ_EX": ("operation b'\\x92'", lambda: named("builtins", "tuple") + b")}\x92"),
    "set": ("operation b'\\x8f'", lambda: b"\x8f(" + plain(1) + b"\x90"),
    "frozenset": ("operation b'\\x91'", lambda: b"(" + plain(1) + b"\x91"),
    "buffer outside the file": ("operation b'\\x97'", lambda: b"\x97"),
    "DUP": ("operation b'2'", lambda: plain(1) + b"2"),
    "LONG4": ("operation b'\\x8b'", lambda: plain(2**5000)),
    "BUILD on a dict": ("state of a dict", lambda: b"}" + plain({"a": 1}) + b"b"),
    "BUILD on a constructor": (
        "state of a _Constructor",
        lambda: named("builtins", "tuple") + plain({"_build": 1}) + b"b",
    ),
    "BUILD of a constructor's slots": (
        "state of a _Constructor",
        lambda: (
            named("builtins", "tuple") + tuple_of(b"N}" + plain("_build") + named("builtins", "bytes") + b"s") + b"b"
        ),
    ),
    "items set in a constructor": (
        "items of a _Constructor",
        lambda: named("builtins", "eval") + plain("a") + plain(1) + b"s",
    ),
    "items set in an array": ("items of a _Array", lambda: array_of() + plain("a") + plain(1) + b"s"),
    "items appended to a tuple": ("appends to a tuple", lambda: b")" + plain(1) + b"a"),
    "items appended to a dict": ("appends to a dict", lambda: b"}(" + plain(1) + b"e"),
    # arrays that are none, or lie
    "array of objects": ("dtype 'O8'", lambda: pickle.dumps(np.array([[1], "x"], object), 4)[2:-1]),
    "array of texts": ("dtype 'U3'", lambda: pickle.dumps(np.array(["abc"]), 4)[2:-1]),
    "array of bytes": ("dtype 'S3'", lambda: pickle.dumps(np.array([b"abc"]), 4)[2:-1]),
    "array of dates": ("dtype 'M8'", lambda: pickle.dumps(np.array(["2022-01-01"], "M8[D]"), 4)[2:-1]),
    "array of structures": ("dtype 'V8'", lambda: pickle.dumps(np.zeros(2, "f4,f4"), 4)[2:-1]),
    "dtype of structures": ("dtype 'i,i'", lambda: array_of(dtype=dtype_of("i,i"))),
    "dtype with fields": ("structured dtype", lambda: array_of(dtype=dtype_of("f4", fields=plain((None, ("a",), {}))))),
    "dtype of one letter": ("dtype 'c'", lambda: array_of(dtype=dtype_of("c"))),
    "dtype of unknown size": ("damaged", lambda: array_of(dtype=dtype_of("f9"))),
    "dtype of unknown order": ("structured dtype", lambda: array_of(dtype=dtype_of("f4", order="x"))),
    "dtype as a value": ("a dtype instead of a value", lambda: dtype_of("f4")),
    "dtype that is a text": ("without a numeric dtype", lambda: array_of(dtype=plain("f4"))),
    "array without data": (
        "array without data",
        lambda: call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), plain((0,)), plain(b"b")),
    ),
    "data that is a list": ("Python objects", lambda: array_of(data=plain([1.0, 2.0]))),
    "data that is a text": ("Python objects", lambda: array_of(data=plain("\0" * 8))),
    "shape larger than the data": ("(3,) (12 bytes) with 8", lambda: array_of(plain((3,)))),
    "shape smaller than the data": ("(1,) (4 bytes) with 8", lambda: array_of(plain((1,)))),
    "shape of protocol 5 larger than the data": ("(3,) (12 bytes) with 8", lambda: buffer_of(plain((3,)))),
    "negative shape": ("impossible shape", lambda: array_of(plain((-2,)))),
    "shape of two negative sides": ("impossible shape", lambda: array_of(plain((-1, -2)))),
    "shape of 4 TB": ("(4000000000000 bytes)", lambda: array_of(plain((10**12,)))),
    "shape that overflows to nothing": ("with 0 bytes", lambda: array_of(plain((2**62, 4)), plain(b""))),
    "shape that overflows to the data": ("with 8 bytes", lambda: array_of(plain((2**33, 2**31, 1, 2)))),
    "shape beyond 64 bits": ("impossible shape", lambda: array_of(plain((2**100,)))),
    "shape of nothing times too much": ("damaged", lambda: array_of(plain((0, 2**62, 2**62)), plain(b""))),
    "shape of 1,000 sides": ("unknown shape", lambda: array_of(plain((1,) * 1000))),
    "shape of fractions": ("impossible shape", lambda: array_of(plain((2.0,)))),
    "shape that is a number": ("unknown shape", lambda: array_of(plain(2))),
    "shape that takes hours to multiply": (
        "unknown shape",
        lambda: array_of(plain(2**2030) + b"q\x000(" + b"h\x00" * 200_000 + b"t"),
    ),
    "axes that are no permutation": ("damaged", lambda: buffer_of(plain((2, 1)), None, plain("K"), plain((0, 0)))),
    "axes that are too many": ("damaged", lambda: buffer_of(plain((2, 1)), None, plain("K"), plain((1, 0, 2)))),
    "axes that are texts": ("order of axes", lambda: buffer_of(plain((2, 1)), None, plain("K"), plain(("a", "b")))),
    "order of axes that doubles": ("order of axes", lambda: buffer_of(plain((2,)), None, plain("K"), doubled())),
    "unknown order of the data": ("order 'A'", lambda: buffer_of(plain((2,)), order=plain("A"))),
    "scalar of too few bytes": (
        "4 bytes) with 2",
        lambda: call("numpy.core.multiarray", "scalar", dtype_of("f4"), plain(b"\0\0")),
    ),
    "state of an array too short": (
        "unknown layout",
        lambda: call("numpy.core.multiarray", "_reconstruct") + plain((1, (2,))) + b"b",
    ),
    # bombs
    "100,000 nested lists": ("nested", lambda: b"]" * 100_000 + b"a" * 99_999),
    "100,000 nested tuples": ("nested", lambda: b")" + b"\x85" * 100_000),
    "100,000 nested dicts": ("nested", lambda: (b"}" + plain("a")) * 100_000 + b"N" + b"s" * 100_000),
    "100,000 nested marks": ("damaged", lambda: b"(" * 100_000),
    "list that doubles": ("repeat one another", lambda: doubled(b"](", b"e")),
    "tuple that doubles": ("repeat one another", doubled),
    "tuple that doubles as a key": ("a tuple as a key", lambda: b"}" + doubled() + b"Ns"),
    "tuple that doubles as a shape": ("impossible shape", lambda: array_of(doubled())),
    "tuple that doubles as data": ("Python objects", lambda: array_of(data=doubled())),
    "tuple that doubles as a dtype": ("dtype a tuple", lambda: call("numpy", "dtype", doubled())),
    "tuple that doubles as an order": ("order a tuple", lambda: buffer_of(plain((2,)), order=doubled())),
    "tuple that doubles as an expression": ("eval(a tuple)", lambda: call("builtins", "eval", doubled(), plain({}))),
    "tuple that doubles as an encoding": ("encodes", lambda: call("_codecs", "encode", plain("x"), doubled())),
    "tuple that doubles as state": ("state of a tuple", lambda: doubled() + b"Nb"),
    "list inside itself": ("a list inside itself", lambda: b"]q\x00h\x00a"),
    "dict inside itself": ("a dict inside itself", lambda: b"}q\x00" + plain("a") + b"h\x00s"),
    "tuple inside itself": ("inside itself", lambda: b"]q\x00h\x00\x85a"),
    "a million lists": ("operations", lambda: b"(" + b"]" * 2_000_000 + b"l"),
    "a million numbers as keys": ("operations", lambda: b"}(" + b"K\x01N" * 1_000_000 + b"u"),
    "keys of the same hash": ("keys that are no names", lambda: sharing_hash(100_000)),
    "text encoded again and again": (
        "copies more",
        lambda: (
            plain("x" * 100_000)
            + b"q\x000"
            + plain("latin1")
            + b"q\x010"
            + repeated(named("_codecs", "encode") + b"h\x00h\x01\x86R", 10_000)
        ),
    ),
    "list copied again and again": (
        "copies more",
        lambda: plain([None] * 50_000) + b"q\x00" + b"0" + repeated(named("builtins", "tuple") + b"h\x00\x85R", 10_000),
    ),
    # lengths that lie, and ends that are missing
    "BINBYTES of 4 GB": ("truncated", lambda: b"B\xff\xff\xff\xff"),
    "BINBYTES8 of 2^60": ("truncated", lambda: b"\x8e" + struct.pack("<Q", 2**60)),
    "BINBYTES8 of 2^64 - 1": ("damaged", lambda: b"\x8e" + b"\xff" * 8),
    "BINUNICODE8 of 2^60": ("truncated", lambda: b"\x8d" + struct.pack("<Q", 2**60)),
    "BYTEARRAY8 of 2^60": ("truncated", lambda: b"\x96" + struct.pack("<Q", 2**60)),
    "BYTEARRAY8 of 2^64 - 1": ("truncated", lambda: b"\x96" + b"\xff" * 8),
    "BINSTRING of negative length": ("damaged", lambda: b"T\xff\xff\xff\xff"),
    "FRAME of 2^60": ("truncated", lambda: b"\x95" + struct.pack("<Q", 2**60)),
    "BINBYTES8 beyond its frame": (
        "damaged",
        lambda: b"\x95" + struct.pack("<Q", 10) + b"\x8e" + struct.pack("<Q", 2**60) + b"N",
    ),
    "GLOBAL without end": ("which no weights need", lambda: b"c" + b"x" * 100),
    "GLOBAL of a million letters": ("which no weights need", lambda: b"c" + b"x" * 1_000_000),
    "memo that was never filled": ("damaged", lambda: b"h\x07"),
    "key without a value": ("damaged", lambda: b"}(" + plain("a") + b"u"),
    "nothing on the stack": ("damaged", lambda: b"RRR"),
    "no mark": ("damaged", lambda: plain(1) + b"t"),
    "text that is no UTF-8": ("damaged", lambda: b"\x8c\x01\xff"),
    "protocol 9": ("damaged", lambda: b"\x80\x09N"),
}

NO_PICKLE = {
    "empty": ("empty", b""),
    "text": ("another kind of file", b"not a checkpoint\n"),
    "zeros": ("another kind of file", bytes(1000)),
    "zip": ("another kind of file", zip_of(readme="hello")),
    "file of another framework": ("another kind of file", zip_of(archive__data=b"\x80\x02}q\x00.")),
    "PNG": ("another kind of file", b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "HTML": ("another kind of file", b"<!DOCTYPE html><html></html>"),
    "only the protocol": ("truncated", PROTO),
    "no end": ("truncated", PROTO + b"}"),
}

# Runs apart from the tests, so that a file that hangs or fills the memory harms only this process.
CHILD = """
import io, json, pickle, resource, sys, time
import numpy as np
from common.checkpoints.safe_pickle import load_arrays

PLAIN = {dict, list, tuple, str, bytes, int, float, bool, type(None)}
FORBIDDEN = ("os.", "subprocess.", "import", "exec", "compile", "open", "socket.", "ctypes.", "pickle.", "shutil.")
events, watching = [], False
sys.addaudithook(lambda event, _: events.append(event) if watching and event.startswith(FORBIDDEN) else None)

def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

def foreign(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return set() if value.dtype.kind in "biufc" else {str(value.dtype)}
    found = {type(value)} - PLAIN
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        found |= foreign(item)
    return set(map(str, found))

with open(sys.argv[1], "rb") as file:
    corpus = pickle.load(file)
before = peak()
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
for name, data in corpus.items():
    events.clear()
    start, watching, message = time.process_time(), True, ""
    try:
        value = load_arrays(io.BytesIO(data), len(data))
        kind = "value"
    except BaseException as error:
        value, kind, message = None, type(error).__name__, str(error)
    watching = False
    seconds = time.process_time() - start
    kind = " ".join([kind, *foreign(value)])
    print(json.dumps([name, kind, message, seconds, peak() - before, events]), flush=True)
"""


@dataclass(frozen=True)
class Verdict:
    """What reading a file came to: ``"value"`` or the exception's class, and what it cost."""

    kind: str
    message: str
    seconds: float
    megabytes: float
    events: list


def judge(corpus, folder):
    """Read every file in a child process, and in another one those that come after a file that kills or stops it."""
    verdicts = {}
    while remaining := {name: data for name, data in corpus.items() if name not in verdicts}:
        (folder / "corpus").write_bytes(pickle.dumps(remaining))
        with (folder / "verdicts").open("w") as output, contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, "-c", CHILD, str(folder / "corpus")],
                cwd=ROOT,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                stdout=output,
                timeout=30,
            )
        found = {name: Verdict(*verdict) for name, *verdict in map(json.loads, (folder / "verdicts").open())}
        if len(found) < len(remaining):
            found[list(remaining)[len(found)]] = Verdict("no answer", "", 30, 0, [])
        verdicts |= found
    return verdicts


def canary_of(name, folder):
    return folder / f"canary of {name}".replace(" ", "_").replace(".", "_")


@pytest.fixture(scope="module")
def canaries(tmp_path_factory):
    return tmp_path_factory.mktemp("canaries")


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory, canaries):
    corpus = {name: PROTO + build(str(canary_of(name, canaries))) + b"." for name, (_, build) in RUNNING.items()}
    corpus |= {name: PROTO + build() + b"." for name, (_, build) in INERT.items()}
    corpus |= {name: data for name, (_, data) in NO_PICKLE.items()}
    return judge(corpus, tmp_path_factory.mktemp("hostile"))


def assert_refused(verdict, part):
    assert verdict.kind == "UnsafePickleError"
    assert part in verdict.message
    assert verdict.message.isprintable()
    assert len(verdict.message) < 300
    assert not verdict.events
    assert verdict.seconds < 2
    assert verdict.megabytes < 200


@pytest.mark.parametrize("name", RUNNING)
def test_file_that_runs_something_is_refused(verdicts, canaries, name):
    assert_refused(verdicts[name], RUNNING[name][0])
    assert not canary_of(name, canaries).exists()


@pytest.mark.parametrize("name", RUNNING)
def test_the_same_file_does_harm_elsewhere(tmp_path, name):
    canary = tmp_path / "canary"
    with contextlib.suppress(Exception):
        pickle.loads(PROTO + RUNNING[name][1](str(canary)) + b".")
    assert canary.exists()


@pytest.mark.parametrize("name", [*INERT, *NO_PICKLE])
def test_hostile_or_broken_file_is_refused(verdicts, name):
    assert_refused(verdicts[name], (INERT | NO_PICKLE)[name][0])


def test_refusal_names_the_file(tmp_path):
    (tmp_path / "w.pdparams").write_bytes(PROTO + os_system("x") + b".")
    with pytest.raises(UserError) as caught:
        load_file(tmp_path / "w.pdparams")
    assert str(caught.value).startswith(f"refused to load {tmp_path}/w.pdparams: it wants to use 'os.system'")


def test_array_made_by_hand_is_what_the_hostile_ones_are_made_of():
    for array in (array_of(), buffer_of(plain((2,)))):
        assert_same_bits(load(PROTO + array + b"."), np.zeros(2, np.float32))


def test_memo_index_costs_no_memory(tmp_path):
    verdicts = judge({"memo": PROTO + b"}r\xff\xff\xff\x7f."}, tmp_path)
    assert verdicts["memo"].kind == "value"
    assert verdicts["memo"].megabytes < 10


# ---- slices


WRONG_TABLES = {
    "missing slice": {"w": {"OriginShape": (12,), "slices": ["a", "none"]}},
    "slice that is no array": {"w": {"OriginShape": (12,), "slices": ["number"]}},
    "slice that is a list": {"w": {"OriginShape": (12,), "slices": ["list"]}},
    "the same slice twice": {"w": {"OriginShape": (24,), "slices": ["a", "a"]}},
    "slices of two types": {"w": {"OriginShape": (24,), "slices": ["a", "bytes"]}},
    "no slices": {"w": {"OriginShape": (12,), "slices": []}},
    "slices that are a number": {"w": {"OriginShape": (12,), "slices": 3}},
    "names that are lists": {"w": {"OriginShape": (12,), "slices": [["a"]]}},
    "wrong shape": {"w": {"OriginShape": (5, 5), "slices": ["a"]}},
    "shape of texts": {"w": {"OriginShape": ("12",), "slices": ["a"]}},
    "no shape": {"w": {"slices": ["a"]}},
    "entry that is an array": {"w": NUMBERS},
    "table that is a list": ["w"],
    "one array under many names": {"w": {"OriginShape": (1_200_000,), "slices": [f"big{i}" for i in range(100)]}},
}


@pytest.mark.parametrize("name", WRONG_TABLES)
def test_wrong_table_of_slices_is_refused(tmp_path, name):
    big = np.zeros(12_000)
    state = {"a": np.arange(12.0), "bytes": np.zeros(12, np.uint8), "number": 3, "list": [[1.0] * 12]}
    state |= {f"big{i}": big for i in range(100)} | {"UnpackBigParamInfor@@": WRONG_TABLES[name]}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(state, 2))
    with pytest.raises(UserError, match=r"refused to load .*w.pdparams: its table of sliced arrays is damaged$"):
        load_file(tmp_path / "w.pdparams")


# ---- damage


def real_state():
    rng = np.random.default_rng(0)
    shapes = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "head.weight": (8, 10), "head.bias": (10,), "count": ()}
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}


def real_files(folder):
    """What Paddle writes with each protocol, and what NumPy writes with the newest."""
    tensors = {name: paddle.to_tensor(array) for name, array in real_state().items()}
    files = {"protocol 5": pickle.dumps({"model": real_state(), "epoch": 3}, 5)}
    for protocol in (2, 3, 4):
        for kind, value in (("flat", tensors), ("nested", {"model": tensors, "list": [tensors["count"]], "epoch": 3})):
            paddle.save(value, str(folder / "file"), protocol=protocol)
            files[f"{kind} of protocol {protocol}"] = (folder / "file").read_bytes()
    return files


def assert_harmless(verdicts, kinds):
    assert {verdict.kind for verdict in verdicts.values()} <= kinds
    assert not [name for name, verdict in verdicts.items() if verdict.events]
    assert max(verdict.seconds for verdict in verdicts.values()) < 2
    assert max(verdict.megabytes for verdict in verdicts.values()) < 200
    assert all(verdict.message.isprintable() for verdict in verdicts.values())


def test_truncated_file_is_refused(tmp_path):
    files = real_files(tmp_path)
    corpus = {f"{name} {end}": data[:end] for name, data in files.items() for end in range(0, len(data), 50)}
    assert_harmless(judge(corpus, tmp_path), {"UnsafePickleError"})


def test_flipped_bits_give_numbers_or_a_refusal(tmp_path):
    corpus = {}
    for name, data in real_files(tmp_path).items():
        for position in range(0, len(data), 97):
            for bit in range(8):
                damaged = bytearray(data)
                damaged[position] ^= 1 << bit
                corpus[f"{name} {position} {bit}"] = bytes(damaged)
    verdicts = judge(corpus, tmp_path)
    assert_harmless(verdicts, {"UnsafePickleError", "value"})
    assert {verdict.kind for verdict in verdicts.values()} == {"UnsafePickleError", "value"}


def mutate(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data))
        length = rng.choice((1, 1, 1, 2, 4, 8, 40))
        piece = bytes(data[start : start + length])
        change = rng.randrange(6)
        if change == 0:
            data[start : start + length] = rng.randbytes(length)
        elif change == 1:
            del data[start : start + length]
        elif change == 2:
            data[start:start] = piece * rng.choice((1, 2, 50))
        elif change == 3:
            other = rng.randrange(len(data))
            data[other:other] = piece
        elif change == 4:
            data[start] = rng.choice(b"().0Nabcdehjlqrstu]}\x80\x81\x85\x86\x87\x8c\x8e\x93\x94\x95RKMJTUX")
        else:
            data[start : start + 8] = b"\xff" * rng.choice((1, 4, 8))
        data = data or bytearray(b".")
    return bytes(data)


def test_random_changes_give_numbers_or_a_refusal(tmp_path):
    rng = random.Random(0)
    seeds = [*real_files(tmp_path).values(), *(pickle.dumps(array, 2) for array in LAYOUTS.values())]
    seeds += [PROTO + array_of() + b".", PROTO + buffer_of(plain((2,))) + b".", PROTO + doubled(b"](", b"e") + b"."]
    corpus = {str(number): mutate(rng.choice(seeds), rng) for number in range(5000)}
    verdicts = judge(corpus, tmp_path)
    assert_harmless(verdicts, {"UnsafePickleError", "value"})
    kinds = Counter(verdict.kind for verdict in verdicts.values())
    assert min(kinds["value"], kinds["UnsafePickleError"]) > 100


def test_every_flipped_bit_of_a_saved_file_is_found(tmp_path):
    save_file({"model": real_state(), "epoch": 3}, tmp_path / "good.pdparams")
    data = (tmp_path / "good.pdparams").read_bytes()
    load_file(tmp_path / "good.pdparams")
    bad = tmp_path / "bad.pdparams"
    for position in [*range(0, len(data), 97), *range(len(data) - 14, len(data))]:
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            bad.write_bytes(damaged)
            with pytest.raises(UserError, match="damaged"):
                load_file(bad)

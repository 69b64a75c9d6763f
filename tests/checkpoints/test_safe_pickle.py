"""Weights are read as they were written; files with anything else are refused before anything happens."""

import contextlib
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
from collections import OrderedDict, defaultdict
from dataclasses import dataclass

import numpy as np
import paddle
import pytest

from common.checkpoints.file_format import load_file
from common.checkpoints.safe_pickle import UnsafePickleError, load_arrays
from common.errors import UserError
from tests.helpers.programs import ROOT

ARRAYS = {
    **{code: np.array([[-3, -1, 0], [1, 2, 100]]).astype(code) for code in ("?", "u1", "i8", "f2", "f4", "g", "c8")},
    "big-endian": np.array([1.5, -2.0], ">f4"),
    "0-d": np.array(7, np.float32),
    "empty": np.zeros((2, 0, 3), np.int64),
    "Fortran": np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
    "strided": np.arange(20, dtype=np.uint8)[3::4],
    "special values": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32),
    "larger than a frame": np.arange(50_000, dtype=np.float32),
}
SHARED = [1, 2]
PLAIN = {
    "numbers": [None, True, 0, -1, 65_536, 2**63, -(2**100), 1.5, float("inf")],
    "texts": ["", "ü" * 300, "x" * 70_000],
    "bytes": [b"", bytes(range(256)), b"\xff" * 70_000],
    "tuples": [(), (1,), (1, 2), (1, 2, 3, 4), (("a", 1),)],
    "nested": {"a": [{"b": ({"c": [[], {}]},)}]},
    "class names": {number: f"class {number}" for number in range(1000)},
    "shared": [SHARED, SHARED, {"again": SHARED}],
}


def load(data):
    return load_arrays(io.BytesIO(data), len(data))


def assert_same_bits(found, array):
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_values_are_read_bit_by_bit(protocol):
    for array in ARRAYS.values():
        assert_same_bits(load(pickle.dumps(array, protocol)), array)
    for value in (PLAIN, np.float16(0.1), np.uint64(2**64 - 1)):
        found = load(pickle.dumps(value, protocol))
        assert type(found) is type(value)
        assert repr(found) == repr(value)
    found = load(pickle.dumps(OrderedDict([("b", 1), ("a", 2)]), protocol))
    assert type(found) is dict
    assert list(found) == ["b", "a"]


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_the_module_names_of_numpy_1_and_2_are_read(core, protocol):
    data = pickle.dumps({"array": ARRAYS["f4"], "scalar": np.float32(1.5)}, protocol)
    data = data[:2] + data[11:] if data[2:3] == pickle.FRAME else data  # the length of the frame would change
    for name in ("multiarray", "numeric"):
        for old in ("numpy.core", "numpy._core"):
            new, before = f"{core}.{name}".encode(), f"{old}.{name}".encode()
            data = data.replace(b"c" + before + b"\n", b"c" + new + b"\n")
            data = data.replace(b"\x8c" + bytes([len(before)]) + before, b"\x8c" + bytes([len(new)]) + new)
    assert f"{core}.".encode() in data
    assert_same_bits(load(data)["array"], ARRAYS["f4"])
    assert load(data)["scalar"] == 1.5


# ---- files of Paddle


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_files_of_paddle_are_read(tmp_path, protocol):
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4), paddle.nn.Linear(300, 300))
    paddle.save(layer.state_dict(), str(tmp_path / "flat.pdparams"), protocol=protocol)
    found = load_file(tmp_path / "flat.pdparams")
    assert list(found) == list(layer.state_dict())
    for name, tensor in layer.state_dict().items():
        assert_same_bits(found[name], tensor.numpy())
    for dtype in ("bool", "int64", "float16", "complex64"):
        tensor = paddle.to_tensor(np.arange(6).reshape(2, 3)).astype(dtype)
        value = {"model": {"w": tensor, "list": [tensor, "text"]}, "dense": tensor.value().get_tensor(), "epoch": 3}
        paddle.save(value, str(tmp_path / "nested.pdparams"), protocol=protocol)
        found = load_file(tmp_path / "nested.pdparams")
        for array in (found["model"]["w"], found["model"]["list"][0], found["dense"]):
            assert_same_bits(array, tensor.numpy())
        assert (found["model"]["list"][1], found["epoch"]) == ("text", 3)


SLICES = {"w@@.0": np.arange(5.0), "w@@.1": np.arange(5.0, 10.0), "w@@.2": np.arange(10.0, 12.0)}


def test_an_array_that_paddle_sliced_is_joined(tmp_path):
    table = {"w": {"OriginShape": (3, 4), "slices": list(SLICES)}}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({**SLICES, "UnpackBigParamInfor@@": table}, 2))
    found = load_file(tmp_path / "w.pdparams")
    assert list(found) == ["w"]
    assert_same_bits(found["w"], np.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize(
    "entry",
    [
        {"OriginShape": (12,), "slices": ["w@@.0", "none"]},
        {"OriginShape": (5, 5), "slices": ["w@@.0"]},
        {"OriginShape": (12,), "slices": 3},
    ],
    ids=["missing slice", "wrong shape", "a number"],
)
def test_a_damaged_table_of_slices_is_refused(tmp_path, entry):
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({**SLICES, "UnpackBigParamInfor@@": {"w": entry}}, 2))
    with pytest.raises(UserError, match=r"refused to load .*w.pdparams: its table of sliced arrays is damaged$"):
        load_file(tmp_path / "w.pdparams")


# ---- hostile files, made of pickle operations

PROTO = b"\x80\x04"


def plain(value):
    """The operations that put a value on the stack, without the memo."""
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
    """An array as protocol 2 has it."""
    shape = plain((2,)) if shape is None else shape
    data = plain(bytes(8)) if data is None else data
    empty = call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), plain((0,)), plain(b"b"))
    return empty + tuple_of(plain(1), shape, dtype or dtype_of("f4"), plain(False), data) + b"b"


def buffer_of(shape, order="C", *axes):
    """An array as protocol 5 has it."""
    return call("numpy.core.numeric", "_frombuffer", plain(bytes(8)), dtype_of("f4"), shape, plain(order), *axes)


def doubled(before=b"", after=b"\x86"):
    """A tuple that contains another one twice, and so on: 2^60 of them in 420 bytes."""
    operations = b")q\x00"
    for level in range(60):
        operations += b"0" + before + b"h%ch%c" % (level, level) + after + b"q%c" % (level + 1)
    return operations


def os_system(canary):
    return call_plain("os", "system", f"touch {canary}")


# name: (part of the message, operations with which pickle.load would create the canary)
RUNNING = {
    "REDUCE": ("os.system", os_system),
    "STACK_GLOBAL with a dotted name": (
        "posixpath.os.system",
        lambda canary: plain("posixpath") + plain("os.system") + b"\x93" + plain((f"touch {canary}",)) + b"R",
    ),
    "eval": ("would execute eval(", lambda canary: call_plain("builtins", "eval", f"open({canary!r}, 'w')")),
    "eval with data": (
        "would execute eval(",
        lambda canary: call_plain("builtins", "eval", f"open({canary!r}, 'w') and data", {"data": 1}),
    ),
    "numpy.memmap": ("numpy.memmap", lambda canary: call_plain("numpy", "memmap", canary, "u1", "w+", 0, (1,))),
    "INST": ("opcode b'i'", lambda canary: b"(" + plain(f"touch {canary}") + b"ios\nsystem\n"),
    "OBJ": ("os.system", lambda canary: b"(" + named("os", "system") + plain(f"touch {canary}") + b"o"),
    "thrown away": ("os.system", lambda canary: os_system(canary) + b"0}"),
}

INERT = {
    # constructors
    "another class": ("collections.defaultdict", pickle.dumps(defaultdict(int), 4)[2:-1]),
    "constructor as a value": ("builtins.eval in place of a value", named("builtins", "eval")),
    "call of ndarray": ("numpy.ndarray directly", call_plain("numpy", "ndarray", (10**9,))),
    "tuple of a dict": ("tuple", call_plain("builtins", "tuple", {"a": 1})),
    "encode to utf-32": ("text encoding", call_plain("_codecs", "encode", "x", "utf-32")),
    "OrderedDict from items": ("OrderedDict", call_plain("collections", "OrderedDict", [["a", 1]])),
    "name with escapes": ("os\\nsystem\\x1b", plain("os\nsystem\x1b[2J") * 2 + b"\x93"),
    "name of a million letters": ("not allowed in weights", plain("os") + plain("x" * 10**6) + b"\x93"),
    "call of a value": ("calls a function", plain("os.system") + plain(("ls",)) + b"R"),
    # operations
    "persistent id": ("opcode b'Q'", plain("os.system") + b"Q"),
    "NEWOBJ": ("opcode b'\\x81'", named("builtins", "tuple") + b")\x81"),
    "BUILD on a dict": ("state of a dict", b"}" + plain({"a": 1}) + b"b"),
    "BUILD on a constructor": ("state of a _Constructor", named("builtins", "tuple") + plain({"_build": 1}) + b"b"),
    "items of a constructor": ("items of a _Constructor", named("builtins", "eval") + plain("a") + plain(1) + b"s"),
    "append to a tuple": ("appends to a tuple", b")" + plain(1) + b"a"),
    # arrays
    "objects": ("dtype 'O8'", pickle.dumps(np.array([[1], "x"], object), 4)[2:-1]),
    "structured dtype": ("dtype 'i,i'", array_of(dtype=dtype_of("i,i"))),
    "dtype with fields": ("structured dtype", array_of(dtype=dtype_of("f4", fields=plain((None, ("a",), {}))))),
    "dtype as a value": ("a dtype in place of a value", dtype_of("f4")),
    "no data": ("array without data", call("numpy.core.multiarray", "_reconstruct")),
    "data as a list": ("Python objects", array_of(data=plain([1.0, 2.0]))),
    "shape larger than the data": ("(3,) (12 bytes) with 8", array_of(plain((3,)))),
    "shape that overflows": ("with 0 bytes", array_of(plain((2**62, 4)), plain(b""))),
    "shape of 1,000 sides": ("unknown shape", array_of(plain((1,) * 1000))),
    "shape of fractions": ("impossible shape", array_of(plain((2.0,)))),
    "axes that are no permutation": ("damaged", buffer_of(plain((2, 1)), "K", plain((0, 0)))),
    "axes that are texts": ("order of axes", buffer_of(plain((2, 1)), "K", plain(("a", "b")))),
    "unknown order": ("memory order 'A'", buffer_of(plain((2,)), "A")),
    # bombs
    "100,000 nested lists": ("nested", b"]" * 100_000 + b"a" * 99_999),
    "list that doubles": ("expand to more than", doubled(b"](", b"e")),
    "key that doubles": ("a tuple as a key", b"}" + doubled() + b"Ns"),
    "shape that doubles": ("impossible shape", array_of(doubled())),
    "expression that doubles": ("eval(a tuple)", call("builtins", "eval", doubled(), plain({}))),
    "list in itself": ("a list that contains itself", b"]q\x00h\x00a"),
    "millions of lists": ("operations", b"(" + b"]" * 2_000_000 + b"l"),
    "keys of the same hash": (
        "keys that are not strings",
        b"}(" + b"".join(plain(number * (2**61 - 1)) + b"N" for number in range(100_000)) + b"u",
    ),
    "list copied many times": (
        "copies are larger",
        plain([None] * 50_000) + b"q\x000](" + (named("builtins", "tuple") + b"h\x00\x85R") * 10_000 + b"e",
    ),
    # wrong lengths
    "BINBYTES8 of 2^60": ("truncated", b"\x8e" + struct.pack("<Q", 2**60)),
    "BYTEARRAY8 of 2^64 - 1": ("truncated", b"\x96" + b"\xff" * 8),
    "memo that was never filled": ("damaged", b"h\x07"),
    "key without a value": ("damaged", b"}(" + plain("a") + b"u"),
}

OTHER_FILES = {
    "empty": ("empty", b""),
    "text": ("not a pickle file", b"not a checkpoint\n"),
    "zip": ("not a pickle file", b"PK\x03\x04" + bytes(100)),
    "no end": ("truncated", PROTO + b"}"),
}

# Reads files in a process of its own, so that one that hangs or fills the memory harms only this process.
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
    """The result of reading a file, ``"value"`` or the class of the exception, and its cost."""

    kind: str
    message: str
    seconds: float
    megabytes: float
    events: list


def judge(corpus, folder):
    """Read every file in a child process."""
    (folder / "corpus").write_bytes(pickle.dumps(corpus))
    output = subprocess.check_output(
        [sys.executable, "-c", CHILD, str(folder / "corpus")],
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        timeout=120,
    )
    verdicts = {name: Verdict(*verdict) for name, *verdict in map(json.loads, output.splitlines())}
    assert verdicts.keys() == corpus.keys()
    for name, verdict in verdicts.items():
        assert not verdict.events, name
        assert verdict.seconds < 5, name
        assert verdict.megabytes < 200, name
        assert verdict.message.isprintable(), name
        assert len(verdict.message) < 500, name
    return verdicts


def test_hostile_and_damaged_files_are_refused(tmp_path):
    canary = tmp_path / "canary"
    corpus = {name: PROTO + build(str(canary)) + b"." for name, (_, build) in RUNNING.items()}
    corpus |= {name: PROTO + operations + b"." for name, (_, operations) in INERT.items()}
    corpus |= {name: data for name, (_, data) in OTHER_FILES.items()}
    verdicts = judge(corpus, tmp_path)
    assert not canary.exists()
    for name, (part, _) in (RUNNING | INERT | OTHER_FILES).items():
        assert verdicts[name].kind == "UnsafePickleError", name
        assert part in verdicts[name].message, name
    for name in RUNNING:
        with contextlib.suppress(Exception):
            pickle.loads(corpus[name])
        assert canary.exists(), f"{name} is harmless"
        canary.unlink()


def test_the_arrays_that_hostile_files_are_made_of_are_valid():
    for array in (array_of(), buffer_of(plain((2,)))):
        assert_same_bits(load(PROTO + array + b"."), np.zeros(2, np.float32))


def test_a_large_memo_index_takes_no_memory(tmp_path):
    verdict = judge({"memo": PROTO + b"}r\xff\xff\xff\x7f."}, tmp_path)["memo"]
    assert verdict.kind == "value"
    assert verdict.megabytes < 10


# ---- damage


def real_files(folder):
    """Files that Paddle writes with two protocols, and one of NumPy's newest."""
    rng = np.random.default_rng(0)
    shapes = {"conv.weight": (8, 3, 3, 3), "head.weight": (8, 10), "head.bias": (10,), "count": ()}
    arrays = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}
    tensors = {name: paddle.to_tensor(array) for name, array in arrays.items()}
    files = [pickle.dumps({"model": arrays, "epoch": 3}, 5)]
    for protocol in (2, 4):
        paddle.save({"model": tensors, "list": [tensors["count"]], "epoch": 3}, str(folder / "file"), protocol=protocol)
        files.append((folder / "file").read_bytes())
    return files


def mutate(data, rng):
    """Replace, remove or insert some bytes."""
    start, removed = rng.randrange(len(data)), rng.choice((0, 1, 2, 8, 40))
    new = rng.choice((b"", rng.randbytes(rng.choice((1, 4))), b"\xff" * 8, data[start : start + 40] * 50))
    return data[:start] + new + data[start + removed :]


def test_damaged_files_give_numbers_or_a_refusal(tmp_path):
    rng, files = random.Random(0), real_files(tmp_path)
    cut = [data[:end] for data in files for end in range(0, len(data), 100)]
    seeds = [*files, PROTO + array_of() + b".", PROTO + doubled(b"](", b"e") + b"."]
    damaged = [mutate(mutate(rng.choice(seeds), rng), rng) for _ in range(2000)]
    verdicts = judge(dict(enumerate(cut + damaged)), tmp_path)
    kinds = [verdict.kind for verdict in verdicts.values()]
    assert set(kinds[: len(cut)]) == {"UnsafePickleError"}
    assert set(kinds[len(cut) :]) == {"UnsafePickleError", "value"}


def test_an_array_is_not_used_so_often_that_its_copies_would_fill_the_memory():
    array = np.zeros(1000, np.uint16)  # as Paddle writes bfloat16, which loading converts
    tied = {"a": array, "b": array}
    assert load(pickle.dumps(tied, 4)).keys() == tied.keys()
    for protocol in (2, 4, 5):
        with pytest.raises(UnsafePickleError, match="would not fit into memory"):
            load(pickle.dumps(dict.fromkeys(map(str, range(100)), array), protocol))

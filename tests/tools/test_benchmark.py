"""The benchmark tool: what takes turns, what is reported, what is refused. Speeds are not judged here."""

from __future__ import annotations

import csv
import importlib.util
from argparse import Namespace

import pytest

from common.errors import UserError
from tools import benchmark
from tools.helpers import benchmark_runtimes
from tools.helpers.benchmark_runtimes import RUNTIMES, Case

SMALL = ["-size", "32", "-batch", "2", "-rounds", "1"]


@pytest.fixture(autouse=True)
def quick_turns(monkeypatch):
    monkeypatch.setattr(benchmark, "PAUSE", 0.0)
    monkeypatch.setattr(benchmark, "MIN_TURN", 1e-9)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # and back, after the tool has set it


@pytest.fixture
def fake_runtime(monkeypatch):
    """A runtime in which "eager" takes no time; every build and every run is noted."""
    events = []

    def build(case):
        if case.model == "broken":
            raise UserError("broken cannot be built")
        events.append(f"build {case.model}")
        return lambda: events.append(case.model)

    monkeypatch.setitem(RUNTIMES, "eager", build)
    return events


def groups(models, runtimes, modes):
    flags = {"batch": [1], "size": [32], "threads": 1, "amp": False}
    arguments = Namespace(models=models, runtime=runtimes, mode=modes, **flags)
    return [
        [f"{case.model} {case.runtime} {case.mode}" for case in cases] for cases in benchmark._groups(arguments, "cpu")
    ]


def test_possible_cases_of_a_mode_take_turns_together():
    assert groups(["a", "timm:b"], ["eager", "onnxruntime"], ["infer", "train"]) == [
        ["a eager infer", "a onnxruntime infer", "timm:b onnxruntime infer"],
        ["a eager train"],
    ]
    with pytest.raises(UserError, match=r"^timm:b: none of -runtime eager can run it"):
        groups(["a", "timm:b"], ["eager"], ["infer"])


def test_subjects_take_turns_after_all_are_warm(fake_runtime, capsys):
    benchmark.main(["a", "b", "-rounds", "2"])
    assert fake_runtime == ["build a", "a", "a", "build b", "b", "b", "a", "b", "a", "b"]
    assert capsys.readouterr().out.count("| eager   | infer |") == 2


def test_times_are_compared_with_the_first_model_in_the_same_runtime():
    def subject(model, runtime, *seconds):
        return benchmark.Subject(Case(model, runtime, "infer", 4, 32, 1, "cpu", False), None, 2**20, list(seconds))

    models = [subject("a", "eager", 2, 1, 9), subject("b", "eager", 4), subject("b", "static", 3)]
    a, b, b_static = benchmark._records(models)
    assert (a["median_seconds"], a["min_seconds"], a["images_per_second"], a["memory_mb"]) == (2, 1, 2, 1)
    assert (a["ratio"], b["ratio"], b_static["ratio"]) == (1, 2, 1)
    runtimes = [subject("a", "eager", 2), subject("a", "static", 1)]
    assert [record["ratio"] for record in benchmark._records(runtimes)] == [1, 0.5]


def test_the_table_goes_into_a_document_with_its_command(fake_runtime, tmp_path):
    document = tmp_path / "doc.md"
    document.write_text("before\n<!-- begin benchmark -->\nold\n<!-- end benchmark -->\nafter\n")
    benchmark.main(["a", "-rounds", "1", "-into", str(document)])
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| a     | eager " in text
    assert f"`python tools/benchmark.py a -rounds 1 -into {document}`" in text


def test_what_was_measured_before_an_error_is_kept(fake_runtime, tmp_path, capsys, monkeypatch):
    measure = benchmark._measure

    def measure_one_size(cases, rounds):
        if cases[0].size == 64:
            raise UserError("too large")
        return measure(cases, rounds)

    monkeypatch.setattr(benchmark, "_measure", measure_one_size)
    with pytest.raises(UserError, match="too large"):
        benchmark.main(["a", "-size", "32", "64", "-csv", str(tmp_path / "out" / "speed.csv")])
    assert "| a " in capsys.readouterr().out
    (row,) = csv.DictReader((tmp_path / "out" / "speed.csv").open())
    assert (row["model"], row["size"], row["turns"]) == ("a", "32", "9")
    assert "paddlepaddle" in row["machine"]


def test_our_model_runs_in_paddle(capsys):
    benchmark.main(["pale_nano", "-mode", "infer", "train", *SMALL])
    rows = [line.split("|")[2:] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[0].strip(), row[1].strip()) for row in rows] == [("eager", "infer"), ("eager", "train")]
    infer, train = (float(row[8]) for row in rows)
    assert train > 3 * infer > 0  # gradients and two moments besides the weights


@pytest.mark.slow
def test_our_model_runs_in_the_other_runtimes():
    pytest.importorskip("paddle2onnx")
    runtimes = ["static", "inference", "onnxruntime", "openvino_f32"]
    benchmark.main(["pale_nano", "-mode", "infer", "train", "-runtime", *runtimes, *SMALL])


def test_the_names_of_the_runtimes_are_those_that_there_are():
    assert tuple(RUNTIMES) == benchmark.RUNTIMES


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["pale_huge"], "unknown model pale_huge; choose pale_nano"),
        (["torchvision:resnet"], "unknown model torchvision:resnet"),
        (["paddleclas:resnet"], "unknown model paddleclas:resnet; choose swin_tiny"),
        (["pale_nano", "-rounds", "0"], "-rounds is 0; it must be at least 1"),
        (["pale_nano", "-threads", "100000"], "-threads is 100000; it must be at most 1024"),
        (["pale_nano", "pale_nano"], "duplicates are not allowed"),
        (["pale_nano", "-mode", "train", "-runtime", "onnxruntime"], "train and -amp need eager"),
        (["pale_nano", "-csv", __file__], "exists already; give another -csv"),
        (["pale_nano", "-into", "missing.md"], r"cannot read missing\.md"),
    ],
)
def test_mistakes_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        benchmark.main(flags)


def test_peers_that_are_not_installed_are_named_with_the_remedy(monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "paddleclas" else find_spec(name))
    with pytest.raises(UserError, match="pip install --no-deps paddleclas"):
        benchmark.main(["paddleclas:swin_tiny"])
    monkeypatch.setattr(benchmark_runtimes, "PEER_PYTHON", tmp_path / "python")
    with pytest.raises(UserError, match=r"needs \.venv-peers with timm; docs/performance\.md"):
        benchmark.main(["timm:swin_tiny", "-runtime", "onnxruntime"])


def test_a_failed_export_of_a_peer_is_one_line(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho it went wrong >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(benchmark_runtimes, "PEER_PYTHON", python)
    with pytest.raises(UserError, match=r"^cannot export timm:a: it went wrong$"):
        benchmark.main(["timm:a", "-runtime", "onnxruntime"])

"""The benchmark tool: turns, medians, comparisons, reports and messages. What it measures is not judged here."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import paddle
import pytest

from common.errors import UserError
from common.flops import count_flops
from common.inference.export_formats import export_onnx
from common.pale_transformer import create_model
from tests.helpers.programs import ROOT, fails, run_program
from tools import benchmark
from tools.benchmarking import commands, comparisons, interleaving, report
from tools.benchmarking.interleaving import Measurement, Worker, measure
from tools.benchmarking.made_up_photos import write_photos
from tools.benchmarking.memory import PeakMemory
from tools.benchmarking.onnx_session import load_onnx, quantize
from tools.benchmarking.output import write_csv
from tools.benchmarking.subjects import Gemm, Model, Ranks, Reader, Subject, from_json, gemms, variants
from tools.benchmarking.suite import rows

NO_PYTHON = Path("no-such-folder/python")
SMALL = {"batch": 2, "image_size": 32}


def model(name: str = "pale_nano", **settings) -> Model:
    return Model(name=name, model=name, **{**SMALL, **settings})


def timed(name: str, *seconds: float, subject: Subject | None = None, **measured) -> Measurement:
    return Measurement(subject or model(name), seconds, **measured)


class FakeWorker:
    """Stands in for a worker; every build and every run is noted."""

    events: list[tuple]
    seconds: dict[str, list[float]]

    def __init__(self, subject: Subject, peer_python: Path):
        if subject.name == "broken":
            raise UserError("broken: cannot be built")
        self.subject, self.flops, self.images, self.versions = subject, 10, 2, "fake 1.0"
        self.memory, self.parts = {"before": 100, "peak": 350}, None
        self.events.append(("build", subject.name))

    def run(self, runs: int = 1) -> float:
        self.events.append((self.subject.name, runs))
        return self.seconds[self.subject.name].pop(0)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.events.append(("close", self.subject.name))


@pytest.fixture
def fake_workers(monkeypatch):
    monkeypatch.setattr(interleaving, "Worker", FakeWorker)
    monkeypatch.setattr(interleaving, "PAUSE", 0.0)
    monkeypatch.setattr(interleaving, "MIN_TURN", 1e-9)
    FakeWorker.events = []
    FakeWorker.seconds = {"a": [9, 9, 1, 2, 6], "b": [9, 9, 5, 3, 4]}
    return FakeWorker


# ---- turns


def test_subjects_take_turns_after_all_are_warm(fake_workers):
    measured = measure([model("a"), model("b")], 3, 2, NO_PYTHON)
    warm_up = [("build", "a"), ("a", 1), ("a", 1), ("build", "b"), ("b", 1), ("b", 1)]
    turns = [("a", 1), ("b", 1)] * 3
    assert fake_workers.events == [*warm_up, *turns, ("close", "b"), ("close", "a")]
    assert [result.seconds for result in measured] == [(1, 2, 6), (5, 3, 4)]
    assert [result.median for result in measured] == [2, 4]
    assert measured[0].quartiles == (1.5, 4.0)
    assert (measured[0].flops_per_second, measured[0].images_per_second, measured[0].memory_growth) == (5.0, 1.0, 250)


def test_a_short_run_is_repeated_until_a_turn_is_long_enough(fake_workers, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(interleaving.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(interleaving, "MIN_TURN", 2.5)  # a run takes 1 on this clock
    measure([model("a")], 1, 2, NO_PYTHON)
    assert fake_workers.events[-2] == ("a", 3)


def test_what_cannot_be_built_is_left_out_if_the_caller_says_so(fake_workers):
    left_out = []
    subjects = [model("broken"), model("b")]
    measured = measure(subjects, 1, 2, NO_PYTHON, leave_out=lambda subject, error: left_out.append((subject, error)))
    assert [result.subject.name for result in measured] == ["b"]
    assert [(subject.name, str(error)) for subject, error in left_out] == [("broken", "broken: cannot be built")]
    with pytest.raises(UserError, match="broken"):
        measure(subjects, 1, 2, NO_PYTHON)


# ---- workers


def test_a_worker_builds_its_subject_and_runs_it():
    with Worker(Gemm(name="GEMM", library="numpy", size=64), NO_PYTHON) as worker:
        assert (worker.flops, worker.images, worker.memory) == (2 * 64**3, None, None)
        assert "numpy" in worker.versions
        assert 0 < worker.run(3) < 1
    assert worker._process.poll() == 0


def test_a_worker_that_is_busy_is_ended(monkeypatch):
    monkeypatch.setattr(interleaving, "PATIENCE", 0.1)
    with Worker(Gemm(name="GEMM", library="numpy", size=64), NO_PYTHON) as worker:
        print(json.dumps({"runs": 10**9}), file=worker._process.stdin, flush=True)
    assert worker._process.poll() == -signal.SIGKILL


def test_a_worker_has_the_environment_of_its_subject():
    environment = model("pale_nano", threads=3, strided=True).environment()
    assert (environment["OMP_NUM_THREADS"], environment["FLAGS_use_stride_kernel"]) == ("3", "1")
    assert model().environment()["FLAGS_use_stride_kernel"] == "0"


def test_peers_that_are_not_set_up_are_one_line_with_the_command():
    with pytest.raises(UserError, match=r"pip install -r requirements-peers-torch\.txt, or give -peer_python"):
        Worker(model("timm:swin_tiny"), NO_PYTHON)


def test_a_process_that_dies_says_how(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho first >&2\necho it went wrong >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(UserError, match=r"^timm:a: it went wrong$"):
        Worker(model("timm:a"), python)
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(UserError, match="code -9; lower the batch"):
        Worker(model("timm:a"), python)


def test_an_unexpected_exception_in_a_worker_comes_with_its_traceback(capsys):
    with pytest.raises(RuntimeError, match="GEMM: TypeError: "):
        Worker(Gemm(name="GEMM", library="numpy", size="large"), NO_PYTHON)
    assert "Traceback" in capsys.readouterr().err


def test_subjects_survive_json():
    for row in rows("somewhere"):
        for subject in row.subjects:
            assert from_json(json.loads(json.dumps(subject.to_json()))) == subject


# ---- what can be built


@pytest.fixture(scope="module")
def multiply_adds():
    return count_flops(create_model("pale_nano"), SMALL["image_size"], SMALL["image_size"])


@pytest.mark.parametrize(
    "settings", [{}, {"runtime": "static"}, {"mode": "train"}, {"mode": "train", "recompute": True}]
)
def test_our_models_run(settings, multiply_adds):
    runner = model(**settings).build()
    forward = 2 * 2 * multiply_adds  # two images, two operations for a multiply-add
    assert runner.images == 2
    assert runner.flops == forward * (3 if "mode" in settings else 1)
    assert runner.run() > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pale_huge", "unknown model 'pale_huge'; choose pale_nano"),
        ("torchvision:resnet", "unknown model 'torchvision:resnet'"),
        ("paddleclas:resnet", "unknown peer paddleclas:resnet; choose one of swin_tiny"),
    ],
)
def test_an_unknown_model_is_named_with_those_there_are(name, message):
    with pytest.raises(UserError, match=message):
        model(name).build()


def test_paddleclas_that_is_not_installed_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps -r requirements-peers-paddle\.txt"):
        model("paddleclas:swin_tiny").build()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "train", "runtime": "onnxruntime"}, "-runtime onnxruntime runs forward only"),
        ({"name": "timm:swin_tiny", "runtime": "static"}, "timm:swin_tiny does not run in static"),
        ({"dtype": "float16"}, "-dtype float16 needs -device gpu"),
        ({"device": "gpu", "runtime": "onnxruntime"}, "measured on CPUs only"),
        ({"recompute": True}, "add -mode train"),
        ({"name": "paddleclas:swin_tiny", "mode": "train", "recompute": True}, "name no peer"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        model(**settings)


def test_paddles_peers_may_use_stride_kernels_and_others_have_one_variant():
    assert [variant.strided for variant in variants(model("paddleclas:swin_tiny"))] == [False, True]
    for other in (model(), model("timm:swin_tiny"), model("paddleclas:swin_tiny", runtime="onnxruntime")):
        assert variants(other) == (other,)


@pytest.mark.slow
def test_eight_bits_are_computed_with_and_come_close(tmp_path):
    onnx = pytest.importorskip("onnx")
    for package in ("paddle2onnx", "ml_dtypes"):
        pytest.importorskip(package)
    paddle.seed(0)
    net, images = create_model("pale_nano", num_classes=10), paddle.randn([2, 3, 64, 64])
    net.eval()
    export_onnx(net, tmp_path / "model.onnx", {"images": [None, 3, 64, 64]}, ["logits"])
    file = quantize(tmp_path / "model.onnx")
    kinds = [node.op_type for node in onnx.load(file).graph.node]
    assert kinds.count("MatMulInteger") > 30
    assert "ConvInteger" in kinds
    (found,) = load_onnx(file, [images.numpy()], 1)()
    with paddle.no_grad():
        expected = net(images).numpy()
    assert 0 < np.abs(found - expected).max() < 0.2 * np.abs(expected).max()


def test_the_gemms_of_a_gpu_are_paddles_only():
    assert [gemm.library for gemm in gemms(2)] == ["paddle", "numpy", "onnxruntime"]
    assert [(gemm.library, gemm.dtype) for gemm in gemms(2, "gpu", "float16")] == [("paddle", "float16")]


def test_peak_memory_is_what_the_work_added_even_if_it_was_freed():
    watch = PeakMemory("cpu")
    before, size = watch.read(), 64 * 2**20
    block = bytearray(size)
    del block
    after = watch.read()
    assert after["before"] == before["before"]
    assert after["peak"] - after["before"] == pytest.approx(size, abs=2**22)  # the kernel counts in lots of pages


def test_made_up_photos_are_the_same_for_the_same_seed(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert write_photos(tmp_path / name, 2) == ["photo_000.jpg", "photo_001.jpg"]
    first, second = ((tmp_path / name / "photo_001.jpg").read_bytes() for name in ("one", "two"))
    assert first == second
    assert 40_000 < len(first) < 120_000
    assert first != (tmp_path / "one" / "photo_000.jpg").read_bytes()


@pytest.fixture
def kept_cores():
    cores = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, cores)


def test_our_reader_reads_every_photo_on_one_core(kept_cores):
    runner = Reader(name="ours", photos=3).build()
    assert len(os.sched_getaffinity(0)) == 1
    assert runner.images == 3
    array = runner._read(2, 1)
    assert (array.shape, str(array.dtype)) == ((3, 224, 224), "float32")
    assert (array != runner._read(2, 2)).any()
    assert runner.run() > 0


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A stand-in for PaddleClas, whose samples are the transforms and the bytes of the file."""
    for module, text in {
        "utils/logger": "def init_logger():\n    pass\n",
        "data/dataloader/imagenet_dataset": """
from pathlib import Path

class ImageNetDataset:
    def __init__(self, folder, list_file, transforms):
        self.files = [Path(folder, line.split()[0]) for line in open(list_file)]
        self.transforms = transforms

    def __getitem__(self, index):
        return self.transforms, self.files[index].read_bytes()
""",
    }.items():
        file = tmp_path / "ppcls" / f"{module}.py"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "ppcls"]:
        del sys.modules[name]


def test_paddleclas_reads_the_same_files_with_the_same_recipe(checkout, kept_cores):
    runner = Reader(name="theirs", photos=2, source=str(checkout)).build()
    transforms, content = runner._read(1, 1)
    assert runner.images == 2
    assert content.startswith(b"\xff\xd8")
    values = {name: options for transform in transforms for name, options in transform.items()}
    assert list(values) == [
        *("DecodeImage", "RandCropImage", "RandFlipImage", "TimmAutoAugment", "NormalizeImage", "RandomErasing")
    ]
    assert values["TimmAutoAugment"]["config_str"] == "rand-m9-mstd0.5-inc1"
    assert (values["RandCropImage"]["size"], values["RandomErasing"]["EPSILON"]) == (224, 0.25)


def test_a_missing_checkout_of_paddleclas_is_named_with_the_command(tmp_path, kept_cores):
    with pytest.raises(UserError, match=r"git clone .*, and give -paddleclas_source"):
        Reader(name="theirs", photos=1, source=str(tmp_path)).build()


def test_ranks_are_timed_by_their_own_log_without_its_first_record(monkeypatch):
    def run(*arguments):
        folder = Path(arguments[arguments.index("-output") + 1])
        folder.mkdir()
        rates = [("train", 1), ("train", 200), ("val", 7), ("train", 100), ("train", 400)]
        records = [{"kind": kind, "step": 1, "images_per_second": rate} for kind, rate in rates]
        (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        assert ("--nproc_per_node", "2") in pairwise(arguments)

    monkeypatch.setattr(commands, "_run_command", run)
    assert Ranks(name="2 ranks", ranks=2).build().run() == 1 / 200


def test_a_command_that_fails_is_named_with_its_last_line():
    with pytest.raises(UserError, match=r"^-c .* ended with code 5: the reason$"):
        commands._run_command("-c", "import sys; print('the reason'); sys.exit(5)")


# ---- figures


def test_a_ratio_takes_the_fastest_variant_of_each_side():
    measured = {m.subject.name: m for m in (timed("ours", 2.0, 3.0, 9.0), timed("off", 6.0), timed("on", 4.0))}
    ratio = comparisons.time_ratio(["ours"], ["off", "on"], 0.8)
    (record,) = report.comparison_records([ratio], measured)
    assert record["figure"] == "time of ours / off"
    assert (record["value"], record["target"], record["met"]) == (0.75, "<= 0.8", True)
    assert not ratio.is_met(0.81)


def test_the_share_of_the_gemm_rate_is_that_of_the_best_product():
    products = gemms(2)
    rates = {products[0].name: 50e9, products[1].name: 200e9, products[2].name: 150e9}
    measured = {
        product.name: timed(product.name, 2.0, subject=product, flops=2 * rates[product.name]) for product in products
    }
    measured["pale_nano"] = timed("pale_nano", 0.5, flops=90e9)
    records = {record["figure"]: record for record in report.measurement_records(measured)}
    assert records["pale_nano"]["gflops_per_second"] == 180
    assert records["pale_nano"]["gemm_share"] == 0.9
    assert records[products[0].name]["gemm_share"] == 0.25
    del measured[products[1].name], measured[products[2].name], measured[products[0].name]
    assert report.measurement_records(measured)[0]["gemm_share"] is None


def test_a_comparison_without_its_peer_has_a_note_in_place_of_a_value():
    ratio = comparisons.time_ratio(["ours"], ["peer"], 1.0)
    (record,) = report.comparison_records([ratio], {"ours": timed("ours", 1.0)})
    assert (record["value"], record["met"], record["note"]) == (None, None, "without peer")


def test_rows_compare_what_they_measure():
    suite = rows("somewhere")
    assert [row.number for row in suite] == list(range(1, 11))
    for row in suite:
        names = [subject.name for subject in row.subjects]
        assert len(set(names)) == len(names)
        assert row.comparisons
        for comparison in row.comparisons:
            assert set(comparison.needs) <= set(names)
            assert comparison.target or row.comparisons[0].target  # peers in the place of ours have none


# Seconds, and what else matters, by the order of a row's subjects -> the figures of its comparisons.
FIGURES = [
    (1, [{"seconds": s} for s in (1.0, 2.0, 0.8, 1.6, 4.0)], [(1.25, False), (0.625, True)]),
    (2, [{"seconds": s} for s in (3.0, 4.0, 3.0, 2.0, 6.0)], [(1.0, True), (1.5, False)]),
    (3, [{"seconds": s} for s in (0.5, 0.625, 0.4)], [(0.8, True), (1.25, False)]),
    (4, [{"seconds": 1.0, "flops": f} for f in (92, 80, 90, 10, 100, 40)], [(0.92, True), (0.8, None), (0.9, None)]),
    (5, [{"seconds": s} for s in (0.5, 0.5)], [(1.0, False)]),
    (
        6,
        [
            {"seconds": 2.0, "memory_before": 100, "memory_peak": 1100},
            {"seconds": 3.0, "memory_before": 200, "memory_peak": 600},
        ],
        [(600 / 1100, False), (0.4, True), (1.5, False)],
    ),
    (7, [{"seconds": s, "flops": f} for s, f in ((1.0, 10), (1.5, 15), (3.0, 20))], [(1.0, True), (1.5, False)]),
    (8, [{"seconds": s, "images": 64} for s in (1.0, 1.6)], [(1.6, True)]),
    (9, [{"seconds": s, "images": 1} for s in (1.0, 0.625)], [(1.6, False)]),
    (10, [{"seconds": s} for s in (2.5, 1.75)], [(0.75, True)]),
]


@pytest.mark.parametrize(("number", "measurements", "expected"), FIGURES)
def test_the_figures_of_the_rows(number, measurements, expected):
    (row,) = [row for row in rows("somewhere") if row.number == number]
    measured = {
        subject.name: timed(subject.name, values.pop("seconds"), subject=subject, **values)
        for subject, values in zip(row.subjects, map(dict, measurements), strict=True)
    }
    records = report.comparison_records(row.comparisons, measured)
    assert [record["value"] for record in records] == pytest.approx([value for value, _ in expected])
    assert [record["met"] for record in records] == [met for _, met in expected]


# ---- reports


@pytest.fixture
def records():
    measured = {m.subject.name: m for m in (timed("ours", 0.25, 0.5, 0.75, images=2), timed("peer", 1.0, 1.0, 1.0))}
    ratios = [comparisons.time_ratio(["ours"], ["peer"], 0.4), comparisons.time_ratio(["ours"], ["absent"], 1.0)]
    return [
        {"row": 3, "title": "a row", **record}
        for record in [*report.measurement_records(measured), *report.comparison_records(ratios, measured)]
    ]


def test_the_table_shows_the_columns_that_say_something(records):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.markdown(records).splitlines()]
    assert lines[0] == ["row", "what", "figure", "median", "quartiles", "images/s", "target", "met"]
    assert lines[2] == ["3", "a row", "ours", "0.5 s", "0.375 to 0.625", "4", "", ""]
    assert lines[4] == ["3", "a row", "time of ours / peer", "0.5 x", "", "", "<= 0.4", "no"]
    assert lines[5] == ["3", "a row", "time of ours / absent", "not measured", "", "", "<= 1", ""]
    assert len({len(line) for line in report.markdown(records).splitlines()}) == 1


def test_the_table_of_the_suite_has_the_figures_with_their_values_and_says_how_times_vary(records):
    difference = comparisons.Comparison("beyond", ("ours",), lambda measured: (0.5, 0.125), 1.0, sign="-")
    rest = report.comparison_records([difference], {"ours": timed("ours", 0.5)})
    text = report.suite_markdown([*records, *({"row": 4, "title": "more", **record} for record in rest)])
    intro, _, *lines = text.splitlines()
    assert intro.startswith(
        "Medians of 3 to 3 turns. Half of the turns of each lay within 25 % of their median; ours in"
    )
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]] == [
        ["3", "a row", "time of ours / peer", "0.5 s / 1 s = 0.5", "<= 0.4", "missed"],
        ["3", "a row", "time of ours / absent", "without absent", "<= 1", ""],
        ["4", "more", "beyond", "0.5 s - 0.125 s = 0.375 s", "<= 1", ""],
    ]


def test_the_csv_has_a_line_for_each_figure_with_the_machine(records, tmp_path):
    machine = {"date": "2026-01-02T03:04Z", "git": "abc", "cpu": "a CPU, fast", "cores": 2}
    write_csv(records, machine, tmp_path / "benchmark.csv", report.COLUMNS)
    with (tmp_path / "benchmark.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == report.COLUMNS
    assert len(lines) == len(records)
    assert {(line["cpu"], line["cores"], line["git"]) for line in lines} == {("a CPU, fast", "2", "abc")}
    assert (lines[0]["figure"], lines[0]["value"], lines[0]["batch"], lines[0]["rounds"]) == ("ours", "0.5", "2", "3")
    assert (lines[2]["target"], lines[2]["met"], lines[2]["low"]) == ("<= 0.4", "False", "")
    assert lines[3]["note"] == "without absent"


@pytest.mark.parametrize("targets", [True, False])
def test_the_picture_is_drawn_with_and_without_targets(records, tmp_path, targets):
    report.draw(records if targets else records[:2], tmp_path / "benchmark.png")
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


# ---- the command line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name the models to measure, or give -suite"),
        (["pale_nano", "-suite"], "one of the two"),
        (["-suite", "-batch", "4", "-threads", "1"], "leave out -batch -threads"),
        (["pale_nano", "-rows", "1"], "add -suite"),
        (["pale_nano", "-into", "page.md"], "-into is for the tables of -suite and -study; add one"),
        (["-suite", "-into", str(ROOT / "README.md")], "must have the lines <!-- begin performance suite -->"),
        (["-suite", "-rows", "1", "99"], "-rows 99: there is no such row; the rows are 1 to 10"),
        (["pale_nano", "-rounds", "0"], "-rounds is 0; it must be at least 1"),
        (["pale_nano", "-image_size", "16"], "-image_size is 16; it must be at least 32"),
        (["pale_nano", "pale_nano"], "pale_nano stands twice among the models"),
        (["pale_nano", "-runtime", "eager", "eager"], "eager stands twice among the runtime"),
        (["pale_nano", "-runtime", "tensorrt"], "invalid choice: 'tensorrt'"),
        (["pale_nano", "-dtype", "bfloat16"], "needs -device gpu"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_measured(flags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        benchmark.main([*flags, "-out", str(tmp_path)])


def test_models_are_compared_with_the_first_and_products_of_matrices_take_turns_with_them(
    fake_workers, tmp_path, capsys
):
    names = ["pale_nano", "timm:a", *(gemm.name for gemm in gemms(2))]
    fake_workers.seconds = {name: [9, float(number), float(number)] for number, name in enumerate(names, 1)}
    benchmark.main(["pale_nano", "timm:a", "-rounds", "2", "-warmup", "1", "-json", "-out", str(tmp_path)])
    printed = json.loads(capsys.readouterr().out)
    assert printed["machine"]["cores"] == os.cpu_count()
    assert [record["figure"] for record in printed["records"]] == [*names, "time of pale_nano / timm:a"]
    assert printed["records"][-1]["value"] == 0.5
    assert fake_workers.events.count(("timm:a", 1)) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["benchmark.csv", "benchmark.png"]


def test_the_suite_goes_on_without_the_peers_that_are_missing(fake_workers, monkeypatch, tmp_path, capsys):
    def build(self, subject, peer_python):
        if subject.is_foreign:
            raise UserError(f"{subject.name}: not set up")
        FakeWorker.seconds[subject.name] = [1.0] * 3
        FakeWorker.__init__(self, subject, peer_python)

    monkeypatch.setattr(interleaving, "Worker", type("Fake", (FakeWorker,), {"__init__": build}))
    document = tmp_path / "page.md"
    document.write_text("<!-- begin performance suite -->\nold\n<!-- end performance suite -->\n")
    flags = ("-rows", "5", "-rounds", "1", "-into", str(document))
    benchmark.main(["-suite", *flags, "-out", str(tmp_path)])
    output = capsys.readouterr()
    assert "left out timm:swin_tiny: not set up" in output.err
    assert output.out.count("not measured") == 2
    with (tmp_path / "benchmark.csv").open(newline="") as file:
        assert [line["row"] for line in csv.DictReader(file)] == ["5"] * 3
    page = document.read_text()
    assert "without timm:swin_tiny" in page
    assert "old" not in page
    assert page.endswith(", fake 1.0.\n<!-- end performance suite -->\n")


def test_a_suite_of_which_nothing_can_be_measured_says_so(fake_workers, monkeypatch, tmp_path):
    def refuse(subject, peer_python):
        raise UserError(f"{subject.name}: not set up")

    monkeypatch.setattr(interleaving, "Worker", refuse)
    with pytest.raises(UserError, match="nothing could be measured"):
        benchmark.main(["-suite", "-rows", "5", "-out", str(tmp_path)])


@pytest.mark.slow
def test_paddles_peers_are_measured(tmp_path):
    if importlib.util.find_spec("paddleclas") is None:
        pytest.skip("paddleclas is not installed")
    flags = ("-image_size", "32", "-batch", "1", "-rounds", "1", "-out", tmp_path)
    result = run_program("tools/benchmark.py", "paddleclas:convnext_tiny", "pale_nano", *flags)
    assert result.returncode == 0, result.stdout
    assert "| paddleclas:convnext_tiny strided" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_timms_peers_are_measured_in_a_python_of_their_own(tmp_path, runtime):
    python = ROOT / ".venv-peers" / "bin" / "python"
    if not python.exists():
        pytest.skip("the peers are not set up in .venv-peers")
    flags = ("-image_size", "64", "-batch", "1", "-rounds", "1", "-out", tmp_path, "-peer_python", python)
    result = run_program("tools/benchmark.py", "timm:resnet18", "-runtime", runtime, "-json", *flags)
    assert result.returncode == 0, result.stdout
    with (tmp_path / "benchmark.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert "timm" in first["versions"]
    assert float(first["gflops_per_second"]) > 0


@pytest.mark.slow
def test_a_wrong_model_ends_with_one_line(tmp_path):
    assert "pale_huge" in fails("tools/benchmark.py", "pale_huge", "-out", tmp_path, cwd=tmp_path)


@pytest.mark.slow
def test_the_tool_measures_models_and_rows(tmp_path):
    flags = ("-rounds", "1", "-warmup", "1", "-out", tmp_path)
    small = ("-image_size", "32", "-batch", "2")
    result = run_program("tools/benchmark.py", "pale_nano", "-runtime", "eager", "inference", *small, *flags)
    assert result.returncode == 0, result.stdout
    for name in (
        "pale_nano eager",
        "pale_nano inference",
        "GEMM by numpy",
        "time of pale_nano eager / pale_nano infer",
    ):
        assert f"| {name}" in result.stdout
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
    result = run_program("tools/benchmark.py", "-suite", "-rows", "9", "10", *flags)
    assert result.returncode == 0, result.stdout
    with (tmp_path / "benchmark.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == ["9"] * 3 + ["10"] * 3
    assert all(float(line["value"]) > 0 for line in lines)

"""The studies of the benchmark tool: profile, growth and clusters. What they measure is not judged here."""

from __future__ import annotations

import csv
import re
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest

from common.errors import UserError
from common.flops import count_flops
from common.pale_transformer import create_model
from tests.helpers.programs import ROOT
from tools import benchmark
from tools.benchmarking import clusters, growth, interleaving, stage_profile
from tools.benchmarking.clusters import Step, all_reduce_seconds
from tools.benchmarking.interleaving import Measurement
from tools.benchmarking.model_parts import PARTS
from tools.benchmarking.subjects import Copy, Gemm, Profile, Ranks, Reader, Subject
from tools.costing.counts import TrainingCounts
from tools.costing.gpus import A100

PNG = b"\x89PNG"


class HereWorker:
    """Builds and runs small subjects in this process; ranks and the reader only seem to run."""

    def __init__(self, subject: Subject, peer_python):
        self.subject, self.memory, self.parts, self.versions = subject, None, None, "here 1.0"
        if isinstance(subject, (Ranks, Reader)):
            self.flops, self.images, self._seconds = None, 1, 0.5
            return
        smaller = {"megabytes": 1} if isinstance(subject, Copy) else {"size": 64} if isinstance(subject, Gemm) else {}
        self.subject = type(subject)(**{**vars(subject), **smaller})
        self._runner, self._seconds = self.subject.build(), None
        self.flops, self.images = self._runner.flops, self._runner.images

    def run(self, runs: int = 1) -> float:
        seconds = self._seconds or self._runner.run()
        if isinstance(self.subject, Profile):
            self.parts = self._runner.parts()
        return seconds

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


@pytest.fixture
def make_study(monkeypatch, tmp_path, capsys):
    """Run the tool in this process; gives the printed text and the lines of the CSV file."""
    monkeypatch.setattr(interleaving, "Worker", HereWorker)
    monkeypatch.setattr(interleaving, "PAUSE", 0.0)
    monkeypatch.setattr(interleaving, "MIN_TURN", 0.0)

    def make(name: str, *flags: str) -> tuple[str, list[dict[str, str]]]:
        models = ["pale_nano"] if name != "clusters" else ["pale_tiny"]
        rounds = ["-rounds", "2", "-warmup", "1", "-out", str(tmp_path)]
        benchmark.main([*models, "-study", name, *flags, *rounds])
        with (tmp_path / f"performance_{name}.csv").open(newline="") as file:
            return capsys.readouterr().out, list(csv.DictReader(file))

    return make


# ---- profile


@pytest.fixture(scope="module")
def profiled():
    """The parts of two images of 32x32 through pale_nano, whose first map is 8x8."""
    runner = Profile(name="pale_nano", model="pale_nano", batch=2, image_size=32).build()
    seconds = runner.run()
    return runner, runner.parts(), seconds


def test_the_parts_are_the_whole_model(profiled):
    runner, parts, seconds = profiled
    assert sum(part["multiply_adds"] for part in parts) == 2 * count_flops(create_model("pale_nano"), 32, 32)
    assert runner.flops == 2 * sum(part["multiply_adds"] for part in parts)
    assert sum(part["seconds"] for part in parts) == pytest.approx(seconds)
    assert all(part["seconds"] > 0 for part in parts)
    expected = [(str(stage), name) for stage in range(1, 5) for name in PARTS[:-1]]
    assert [(part["stage"], part["part"]) for part in parts] == [*expected, ("head", "head")]


def test_a_part_moves_its_inputs_outputs_and_weights(profiled):
    moved = {part["part"]: part["bytes"] for part in profiled[1] if part["stage"] == "1"}
    channels, values = 20, 2 * 8 * 8 * 20  # of a map
    weights = {
        "patch merging": 3 * channels * 49 + 3 * channels,
        "position encoding": 9 * channels + channels,
        "norms": 2 * 2 * channels,
        "q/k/v depthwise": 3 * 9 * channels,
        "projections": 4 * channels**2 + 2 * channels,  # fused: keys and values have no bias
        "MLP": 8 * channels**2 + 5 * channels,
    }
    maps = {
        "patch merging": 1,
        "position encoding": 2,
        "norms": 4,
        "q/k/v depthwise": 4,
        "projections": 8,
        "grouping": 8,
        "attention": 4,
        "MLP": 2,
        "additions": 6,
    }
    images = {"patch merging": 2 * 3 * 32 * 32}
    assert moved == {
        name: 4 * (count * values + weights.get(name, 0) + images.get(name, 0)) for name, count in maps.items()
    }


def test_the_products_are_counted_where_they_belong(profiled):
    counted = {part["part"]: part["multiply_adds"] for part in profiled[1] if part["stage"] == "1"}
    channels, tokens = 20, 2 * 8 * 8
    assert counted == {
        "patch merging": 3 * 49 * channels * tokens,
        "position encoding": 9 * channels * tokens,
        "norms": 0,
        "q/k/v depthwise": 3 * 9 * channels * tokens,
        "projections": 4 * channels**2 * tokens,
        "grouping": 0,
        "attention": 2 * 4 * 8 * channels * tokens,  # a token meets 4 rows or columns of 8
        "MLP": 8 * channels**2 * tokens,
        "additions": 0,
    }


def test_a_part_is_charged_for_the_runs_since_the_last_look(profiled, monkeypatch):
    runner = profiled[0]
    runner.run()
    runner.run()
    assert len(runner._seconds) == 2
    mean = sum(sum(seconds.values()) for seconds in runner._seconds) / 2
    assert sum(part["seconds"] for part in runner.parts()) == pytest.approx(mean)
    assert runner._seconds == []


def part(stage: str, name: str, multiply_adds: int, moved: int, seconds: float) -> dict:
    return {"stage": stage, "part": name, "multiply_adds": multiply_adds, "bytes": moved, "seconds": seconds}


def test_a_part_is_bound_by_the_slower_of_its_operations_and_its_bytes():
    profile = Profile(name="pale_nano", model="pale_nano")
    copy, product = Copy(name="copy", megabytes=1), Gemm(name="GEMM", library="numpy")
    rounds = tuple(
        [
            part("1", "norms", 0, 2**20, seconds),
            part("1", "MLP", 600, 2**20, 4.0),
            part("head", "head", 100, 2**20, 1.0),
        ]
        for seconds in (2.0, 1.0, 9.0)
    )
    measured = {
        "pale_nano": Measurement(profile, (7.0, 6.0, 14.0), parts=rounds),
        "copy": Measurement(copy, (1.0,)),  # 2 MiB/s, so that a MiB takes 0.5 s
        "GEMM": Measurement(product, (1.0,), flops=400),
    }
    records = stage_profile.profile_records(measured, profile)
    figures = {
        (record["stage"], record["part"]): [
            record[key] for key in ("bound", "bound_seconds", "seconds", "share_of_bound")
        ]
        for record in records
    }
    assert figures == {
        ("1", "norms"): ["bytes", 0.5, 2.0, 0.25],
        ("1", "MLP"): ["arithmetic", 3.0, 4.0, 0.75],
        ("1", "all"): ["arithmetic", 3.5, 6.0, 3.5 / 6.0],
        ("head", "head"): ["bytes", 0.5, 1.0, 0.5],
        ("all", "all"): ["arithmetic", 4.0, 7.0, 4.0 / 7.0],
    }
    assert [record["share_of_time"] for record in records] == pytest.approx([2 / 7, 4 / 7, 6 / 7, 1 / 7, 1.0])


def test_a_copy_is_whole_and_its_bytes_are_read_and_written():
    subject = Copy(name="copy", megabytes=1, threads=3)
    runner = subject.build()
    assert runner.run() > 0
    assert subject.bytes_moved == 2 * 2**20
    (pairs,) = [cell.cell_contents for cell in runner.work.__closure__ if isinstance(cell.cell_contents, list)]
    assert sum(target.size for target, _ in pairs) == 2**18
    assert all((target == 1).all() for target, _ in pairs)


# ---- growth


def options(**given) -> Namespace:
    names = ("models", "sizes", "batches", "ranks", "image_size", "threads", "device")
    return Namespace(**{**dict.fromkeys(names), "models": ["pale_nano"], "rounds": 3, **given})


def test_the_sweeps_vary_one_thing_at_a_time():
    found = list(growth.sweeps(options(sizes=[32, 64], batches=[1, 2, 4], ranks=[1, 2], image_size=96, threads=1)))
    assert [sweep for sweep, _ in found] == ["image size", "batch", "image size", "batch", "ranks"]
    shapes = [[(subject.mode, subject.batch, subject.image_size) for subject in subjects] for _, subjects in found[:4]]
    assert shapes == [
        expected
        for mode in ("forward", "train")
        for expected in (
            [(mode, 1, 32), (mode, 1, 64)],
            [(mode, 1, 96), (mode, 2, 96), (mode, 4, 96)],
        )
    ]
    assert {subject.threads for _, subjects in found for subject in subjects} == {1}
    assert [subject.ranks for subject in found[-1][1]] == [1, 2]
    assert [sweep for sweep, _ in growth.sweeps(options(device="gpu"))].count("ranks") == 0


def test_costs_are_those_of_an_image_and_ranks_run_once():
    rounds = []

    def measure(subjects, count):
        rounds.append(count)
        assert len({subject.name for subject in subjects}) == len(subjects)
        return [
            Measurement(subject, (2.0, 4.0, 9.0), None if isinstance(subject, Ranks) else 80 * 10**9, 8)
            for subject in subjects
        ]

    records = growth.study(options(sizes=[32], batches=[8], ranks=[2]), measure)
    assert rounds == [3, 3, 3, 3, 1]
    for record in records:
        assert (record["seconds"], record["seconds_per_image"], record["images_per_second"]) == (4.0, 0.5, 2.0)
    assert [record["gflop_per_image"] for record in records] == [10, 10, 10, 10, None]
    assert records[0]["gflops_per_second"] == 20


def test_the_picture_of_the_growth_is_of_the_first_model_and_the_ranks(monkeypatch, tmp_path):
    def measure(subjects, count):
        return [Measurement(subject, (2.0,), None if isinstance(subject, Ranks) else 10**9, 1) for subject in subjects]

    drawn = []
    monkeypatch.setattr(growth, "_draw_times", lambda axes, records, key: drawn.extend(records))
    monkeypatch.setattr(growth, "_draw_rates", lambda axes, records: drawn.extend(records))
    for models, expected in (
        (["pale_tiny", "pale_nano"], {"pale_tiny", None}),
        (["pale_nano", "pale_tiny"], {"pale_nano", None}),
    ):
        drawn.clear()
        growth.draw(growth.study(options(models=models, sizes=[32], batches=[1]), measure), tmp_path / "growth.png")
        assert {None if record["ranks"] else record["model"] for record in drawn} == expected
        assert len(drawn) == 4 + 2


@pytest.mark.slow
def test_the_growth_is_printed_written_and_drawn(make_study, tmp_path):
    flags = ("-sizes", "32", "-batches", "2", "-image_size", "32", "-threads", "1")
    text, lines = make_study("growth", *flags)
    assert (tmp_path / "performance_growth.png").read_bytes().startswith(PNG)
    assert len(lines) == 4 + 2
    assert len(text.splitlines()) == len(lines) + 2
    flops = {(line["mode"], line["image_size"]): float(line["gflop_per_image"]) for line in lines[:4]}
    assert flops["train", "32"] == pytest.approx(3 * flops["forward", "32"])
    assert flops["forward", "32"] == pytest.approx(2e-9 * count_flops(create_model("pale_nano"), 32, 32))


# ---- clusters

TINY = TrainingCounts(
    parameters=21_750_000, averaged=True, forward=4_200_000_000, kept=0, images=300 * 1_281_167, batch=128
)


def test_a_ring_sends_everything_nearly_twice_over_the_slowest_link():
    assert all_reduce_seconds(10**9, 1) == 0
    assert all_reduce_seconds(10**9, 8) == pytest.approx(2 * 7 / 8 * 1e9 / 300e9 + 14 * 5e-6)
    assert all_reduce_seconds(10**9, 64) == pytest.approx(2 * 63 / 64 * 1e9 / 200e9 + 126 * 5e-6)


def test_a_step_is_what_its_operations_and_bytes_take():
    step = Step(TINY, 1)
    assert step.compute == pytest.approx(6 * 4.2e9 * 128 / (A100.peak * A100.utilisation))
    assert (step.all_reduce, step.exposed) == (0, 0)
    assert step.seconds == pytest.approx(step.compute + 40 * 21.75e6 / 2039e9)
    assert step.efficiency(128) == 1


def test_the_backward_pass_hides_all_but_the_last_bucket():
    hidden = Step(TINY, 64)
    buckets = 4 * TINY.parameters // (25 * 2**20) + 2
    whole = 4 * TINY.parameters * 2 * 63 / 64 / 200e9
    assert hidden.all_reduce == pytest.approx(whole + buckets * 126 * 5e-6)
    assert hidden.exposed == all_reduce_seconds(2**20, 64)
    slow = Step(replace(TINY, forward=10**6, batch=1), 64)
    assert slow.exposed == pytest.approx(slow.all_reduce, rel=1e-3)
    assert 0 < slow.efficiency(1) < hidden.efficiency(128) < 1


@pytest.mark.parametrize(("gpus", "expected"), [(1, [128]), (8, [128]), (16, [128, 64]), (64, [128, 16])])
def test_more_than_one_node_runs_with_the_recipes_batch_and_with_its_sum(gpus, expected):
    assert clusters.batches(128, gpus) == expected


def test_the_clusters_are_printed_and_written(make_study, monkeypatch):
    recipes = []
    monkeypatch.setattr(clusters, "count_training", lambda recipe, memory: recipes.append(recipe.stem) or TINY)
    text, lines = make_study("clusters", "-gpus", "8", "64")
    assert recipes == ["pale_tiny_224"]
    assert text.startswith("Computed, not measured")
    assert [(line["gpus"], line["batch"]) for line in lines] == [("8", "128"), ("64", "128"), ("64", "16")]
    rate = float(lines[0]["images_per_second"])
    assert float(lines[0]["hours"]) == pytest.approx(300 * 1_281_167 / rate / 3600)
    # The reader that only seems to run makes 2 images/s.
    assert int(lines[1]["reader_cores_of_a_node"]) == np.ceil(float(lines[1]["images_per_second"]) / 8 / 2)


# ---- the command line


def test_the_profile_is_printed_and_written_and_a_document_takes_the_table_and_the_picture(make_study, tmp_path):
    document = tmp_path / "docs" / "page.md"
    document.parent.mkdir()
    document.write_text("before\n<!-- begin performance profile -->\nold\n<!-- end performance profile -->\nafter\n")
    flags = ("-batch", "1", "-image_size", "32", "-threads", "1", "-into", str(document))
    text, lines = make_study("profile", *flags)
    assert "pale_nano, eager forward of 1 images of 32x32" in text
    assert len(lines) == 4 * 10 + 2
    assert text.count("\n| 3 ") == 10
    assert text.count("\n| stage ") == 2
    assert {line["rounds"] for line in lines} == {"2"}
    begin, end = (f"<!-- {mark} performance profile -->" for mark in ("begin", "end"))
    head, table, tail = document.read_text().partition(text.strip())
    assert (head, table) == (f"before\n{begin}\n", text.strip())
    measured_by, last = tail.strip().split("\n", 1)
    assert re.fullmatch(
        r"Produced by: (commit \w+(-dirty)?, )?20\d\d-\d\d-\d\d, .*, \d+ cores, Python .*, here 1\.0\.", measured_by
    )
    assert last == f"{end}\nafter"
    assert (document.parent / "performance_profile.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-study", "profile", "-suite"], "-suite and -study are two things"),
        (["-study", "profile", "-mode", "train", "-dtype", "float32"], "leave out -mode -dtype"),
        (["timm:swin_tiny", "-study", "growth"], "leave out timm:swin_tiny"),
        (["-study", "profile", "-sizes", "64"], "-sizes is for -study growth; add that"),
        (["-study", "growth", "-into", "CONTRIBUTING.md"], "must have the lines <!-- begin performance growth -->"),
        (["pale_nano", "-gpus", "8"], "-gpus is for -study clusters; add that"),
        (["-study", "growth", "-sizes", "64", "16"], "-sizes is 16; it must be at least 32"),
        (["-study", "growth", "-batches", "2", "2"], "2 stands twice among the batches"),
        (["-study", "growth", "growth"], "growth stands twice among the study"),
        (["-study", "speed"], "invalid choice: 'speed'"),
        (["pale_nano", "-study", "clusters"], "there is no recipe for pale_nano; choose among pale_tiny"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_measured(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        benchmark.main([*flags, "-out", str(tmp_path)])

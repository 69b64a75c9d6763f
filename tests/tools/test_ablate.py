"""The ablation runner: what is run, skipped, resumed and refused, and what is made of the results."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import t

from common.errors import StoppedBySignal, UserError
from common.flops import count_flops, params
from common.pale_transformer import create_model
from image_classification.config import CONFIG
from tests.helpers.programs import ROOT, fails, run_program, start_program
from tools import ablate
from tools.ablation import jobs, rows
from tools.ablation.jobs import exclusive
from tools.ablation.report import markdown, summarise
from tools.ablation.results import Result, read_results, write_results
from tools.ablation.rows import Counts, count, load_rows, natural
from tools.markdown_section import read_section, replace_section

# Stands in for the launcher. What it does depends on the row's name, and on whether it was started before.
LAUNCHER = """
import json, os, pathlib, signal, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
name, seed = pathlib.Path(flags["-cfg"]).stem, int(flags["-seed"])
folder = pathlib.Path(flags["-output"])
folder.mkdir(parents=True, exist_ok=True)
again = (folder / "started").exists()
(folder / "started").touch()
print("threads", os.environ["OMP_NUM_THREADS"], "resume", flags["-resume"], "options", sys.argv[9:], flush=True)
if name == "broken" and not again:
    print("error: no such data; give -data_path")
    sys.exit(2)
if name == "long" and not again:
    def save(*_):
        (folder / "saved").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)
epochs = 1 if name == "short" else 2
records = [{"kind": "train", "step": 5, "epoch": 0.5, "seconds_per_batch": 0.5}]
records += [{"kind": "val", "step": 10 * n, "epoch": float(n), "top1": 80.0 + seed - n} for n in range(1, epochs + 1)]
(folder / "log.jsonl").write_text("".join(json.dumps(record) + "\\n" for record in records))
"""


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    path = tmp_path / "launcher.py"
    path.write_text(LAUNCHER)
    monkeypatch.setattr(jobs, "_LAUNCHER", path)
    monkeypatch.setattr(jobs, "_PAUSE", 0.02)
    monkeypatch.setattr(ablate, "count", lambda row: Counts(1000, 2000))


def config(folder: Path, name: str, text: str = "") -> Path:
    """A row that is unlike all others, of two epochs."""
    path = folder / f"{name}.yaml"
    path.write_text(text or f"TRAIN: {{EPOCHS: 2, BASE_LR: {1 + len(list(folder.glob('*.yaml')))}e-4}}\n")
    return path


def go(tmp_path: Path, *arguments: object) -> list[Result]:
    """Run the tool in this process and read its results."""
    options = ["-opts", *arguments[arguments.index("-opts") + 1 :]] if "-opts" in arguments else []
    head = arguments[: len(arguments) - len(options)]
    ablate.main([*map(str, head), "-output", str(tmp_path / "out"), *map(str, options)])
    return read_results(tmp_path / "out" / "results.csv")


def folder_of(tmp_path: Path, row: str, seed: int = 0) -> Path:
    (folder,) = (tmp_path / "out").glob(f"{row}_*/seed{seed}")
    return folder


# ---- rows


def test_the_fingerprint_is_that_of_what_a_run_learns(tmp_path, monkeypatch):
    path = config(tmp_path, "row", "TRAIN: {EPOCHS: 2}\n")

    def of(*options: object) -> str:
        (row,) = load_rows([path], list(map(str, options)))
        return row.fingerprint

    plain = of()
    assert plain == of("OUTPUT", "elsewhere", "SEED", 3, "LOG_INTERVAL", 1, "DATA.DATA_PATH", "x", "TRAIN.EPOCHS", 2)
    different = [plain, of("TRAIN.EPOCHS", 3), of("DATA.BATCH_SIZE", 7), of("MODEL.NAME", "pale_nano")]
    assert len(set(different)) == 4

    def defaults_of_a_later_version():
        later = CONFIG.defaults()
        later.MODEL.NEW = True
        return later

    monkeypatch.setattr(rows, "CONFIG", dataclasses.replace(CONFIG, defaults=defaults_of_a_later_version))
    assert of() == plain
    assert of("MODEL.NEW", False) != plain


def test_rows_must_have_names_and_values_of_their_own(tmp_path):
    (tmp_path / "sub").mkdir()
    one = config(tmp_path, "one")
    with pytest.raises(UserError, match="both be the row one; rename"):
        load_rows([one, config(tmp_path / "sub", "one", "TRAIN: {EPOCHS: 3}")], [])
    with pytest.raises(UserError, match="same configuration; leave one out"):
        load_rows([one, config(tmp_path, "two", one.read_text())], [])
    with pytest.raises(UserError, match="unknown key"):
        load_rows([one], ["MODEL.NAMES", "x"])


def test_names_are_sorted_by_their_numbers():
    assert sorted(["size_10", "b", "size_9"], key=natural) == ["b", "size_9", "size_10"]


def test_the_costs_are_those_of_the_model_with_the_classes_of_the_data(shapes_config):
    (row,) = load_rows([shapes_config], ["DATA.IMAGE_SIZE", "64"])
    model = create_model("pale_nano", num_classes=3)
    assert count(row) == Counts(params(model), count_flops(model, 64, 64))


# ---- runs


def test_every_row_is_run_in_every_seed_and_not_again(tmp_path, launcher, capsys):
    files = [config(tmp_path, "b"), config(tmp_path, "a")]
    results = go(tmp_path, *files, "-seeds", 0, 2, "-jobs", 2)
    assert [(r.row, r.seed, r.top1, r.best_top1) for r in results] == [
        ("a", 0, 78.0, 79.0),
        ("a", 2, 80.0, 81.0),
        ("b", 0, 78.0, 79.0),
        ("b", 2, 80.0, 81.0),
    ]
    first = results[0]
    assert (first.params, first.multiply_adds, first.seconds) == (1000, 2000, 10.0)
    assert "threads 1 resume auto options []" in folder_of(tmp_path, "a").with_suffix(".log").read_text()
    output = capsys.readouterr().out
    assert "4 runs: 0 are finished, 4 are left" in output
    assert "[4/4]" in output
    assert "top-1 80.00, best 81.00; 0:00:00 left" in output

    for started in tmp_path.glob("out/*/*/started"):
        started.unlink()
    assert go(tmp_path, *files, "-seeds", 0, 1, 2) == read_results(tmp_path / "out" / "results.csv")
    assert sorted(path.parent.name for path in tmp_path.glob("out/*/*/started")) == ["seed1", "seed1"]


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path, launcher, capsys):
    files = [config(tmp_path, "broken"), config(tmp_path, "good"), config(tmp_path, "short")]
    with pytest.raises(UserError, match=r"2 of 3 runs failed \(broken seed 0, short seed 0\)"):
        go(tmp_path, *files, "-seeds", 0)
    output = capsys.readouterr().out
    log = folder_of(tmp_path, "broken").with_suffix(".log")
    assert f"broken seed 0: failed: no such data; give -data_path; all it said: {log}" in output
    assert "short seed 0: failed" in output
    assert "ends with epoch 1 of 2" in output
    assert [result.row for result in read_results(tmp_path / "out" / "results.csv")] == ["good"]
    assert [result.row for result in go(tmp_path, files[0], files[1], "-seeds", 0)] == ["broken", "good"]


def test_an_interruption_lets_the_runs_save_and_the_same_command_goes_on(tmp_path, launcher):
    files = [config(tmp_path, "long"), config(tmp_path, "other")]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedBySignal) as stop:
        go(tmp_path, *files, "-seeds", 0)
    assert stop.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert (folder_of(tmp_path, "long") / "saved").exists()
    assert not list(tmp_path.glob("out/other_*"))
    assert [result.row for result in go(tmp_path, *files, "-seeds", 0)] == ["long", "other"]


def test_a_changed_configuration_is_refused_or_run_anew(tmp_path, launcher):
    row = config(tmp_path, "row")
    (old,) = go(tmp_path, row, "-seeds", 0)
    with pytest.raises(UserError, match=rf"row seed 0 of another configuration \({old.fingerprint}, now .*-rerun"):
        go(tmp_path, row, "-seeds", 0, "-opts", "DATA.BATCH_SIZE", 7)
    (new,) = go(tmp_path, row, "-seeds", 0, "-rerun", "-opts", "DATA.BATCH_SIZE", 7)
    assert new.fingerprint != old.fingerprint
    fresh = tmp_path / "out" / f"row_{new.fingerprint}" / "seed0.log"  # not the folder of the old one's state
    assert "options ['-opts', 'DATA.BATCH_SIZE', '7']" in fresh.read_text()


def test_results_are_kept_when_they_cannot_be_written(tmp_path, launcher, monkeypatch):
    files = [config(tmp_path, "a"), config(tmp_path, "long")]
    go(tmp_path, files[0], "-seeds", 0)
    before = (tmp_path / "out" / "results.csv").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        go(tmp_path, files[0], "-seeds", 1)
    assert (tmp_path / "out" / "results.csv").read_bytes() == before
    assert not list((tmp_path / "out").glob(".results*"))


def test_a_folder_has_one_program(tmp_path):
    with (
        exclusive(tmp_path),
        pytest.raises(UserError, match="another ablation runs in"),
        exclusive(tmp_path),
    ):
        pass


def test_the_list_shows_costs_and_how_far_the_runs_are(tmp_path, launcher, capsys):
    done, half, stale = config(tmp_path, "done"), config(tmp_path, "half"), config(tmp_path, "stale")
    go(tmp_path, done, stale, "-seeds", 0)
    go(tmp_path, half, "-seeds", 0)
    (folder_of(tmp_path, "half") / "log.jsonl").write_text('{"kind": "train", "step": 5, "epoch": 0.5}\n')
    results = [r for r in read_results(tmp_path / "out" / "results.csv") if r.row != "half"]
    changed = [dataclasses.replace(r, fingerprint="0") if r.row == "stale" else r for r in results]
    write_results(changed, tmp_path / "out" / "results.csv")
    capsys.readouterr()
    go(tmp_path, done, half, stale, "-list", "-seeds", 0, 1)
    cost = "0.001M params  0.00M multiply-adds"
    assert capsys.readouterr().out.splitlines() == [
        f"done   {cost}  78.00  0 %",
        f"half   {cost}  25 %  0 %",
        f"stale  {cost}  changed  0 %",
    ]
    go(tmp_path, done, half, stale, "-list", "-json", "-seeds", 0, 1)
    rows = {row["row"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["done"]["seeds"]["0"] == {"top1": 78.0, "share": 1.0, "changed": False}
    assert rows["half"]["seeds"]["0"] == {"top1": None, "share": 0.25, "changed": False}
    assert rows["stale"]["seeds"]["0"]["changed"]
    assert 0 < rows["stale"]["params"] < 2000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-jobs", 0], "-jobs is 0"),
        (["-seeds", 1, 1], "-seeds 1 1: they must be different"),
        (["-plot", "x.png"], "belong to -report"),
        (["-json"], "-json belongs to -report or -list"),
        (["-report"], "has no results yet"),
        (["-report", "a.yaml"], "leave out the configurations"),
        (["no_such.yaml"], "cannot read the configuration"),
    ],
)
def test_mistakes_are_refused(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        go(tmp_path, *flags)


def test_a_mistake_is_one_line(tmp_path):
    assert "-jobs is 0; it must be at least 1" in fails("tools/ablate.py", "-jobs", 0, cwd=tmp_path)


# ---- results


def result(row: str, seed: int, top1: float, **changes) -> Result:
    values = {"best_top1": top1, "params": 740_000, "multiply_adds": 14_100_000, "seconds": 1.5, "fingerprint": row}
    values |= {"code_version": "0.1.0+0123abc", "machine": "a, 2 cores", "date": "2026-01-31", **changes}
    return Result(row=row, seed=seed, top1=top1, **values)


def test_results_are_read_as_they_were_written(tmp_path):
    results = [result("a_2", 0, 80.25), result("a_2", 1, 81.0), result("a_10", 0, 79.0)]
    write_results(reversed(results), tmp_path / "new" / "results.csv")
    assert read_results(tmp_path / "new" / "results.csv") == results
    assert read_results(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-30], r"line 3 is damaged \(\d+ of 11 cells\)"),
        (lambda text: text.replace("81.0", "eighty", 1), r"line 3 is damaged \(could not convert"),
        (lambda text: text + text.splitlines()[1], r"results.csv has a with seed 0 twice; delete one"),
        (lambda text: text.replace("seed", "number", 1), r"does not begin with the columns row,seed,"),
        (lambda text: "", r"does not begin with the columns"),
    ],
)
def test_damaged_results_are_refused(tmp_path, damage, message):
    file = tmp_path / "results.csv"
    write_results([result("a", 0, 80.0), result("a", 1, 81.0)], file)
    file.write_text(damage(file.read_text()))
    with pytest.raises(UserError, match=message):
        read_results(file)


# ---- report

SPREAD = [result("pale", 0, 80.0), result("pale", 1, 81.0), result("pale", 2, 82.0)]
SPREAD += [result("near", 0, 80.5), result("near", 1, 81.5), result("near", 2, 82.5)]
SPREAD += [result("far", 0, 75.0), result("far", 1, 77.0)]


def test_differences_have_intervals_of_the_pooled_spread():
    comparison = summarise(SPREAD, "pale")
    near, far = comparison.others
    assert (comparison.reference.mean, near.mean, far.mean) == (81.0, 81.5, 76.0)
    assert (comparison.difference(near), comparison.difference(far)) == (0.5, -5.0)
    # Squares about the means: 2 and 2 over two degrees of freedom each, 2 over one.
    assert comparison.deviation == pytest.approx((6 / 5) ** 0.5)
    quantile = t.ppf(1 - 0.05 / 4, 5)  # two comparisons
    assert comparison.half_width(near) == pytest.approx(quantile * (6 / 5 * 2 / 3) ** 0.5)
    assert comparison.half_width(far) == pytest.approx(quantile * (6 / 5 * (1 / 2 + 1 / 3)) ** 0.5)


def test_the_table_marks_the_differences_that_the_seeds_do_not_explain():
    table = markdown(summarise(SPREAD, "pale")).splitlines()
    assert table[2] == "| `pale` | 0.740M | 14.10M | 3 | 81.00 ± 1.00 |  |"
    assert table[3].startswith("| `near` | 0.740M | 14.10M | 3 | 81.50 ± 1.00 | +0.50 ± ")
    assert table[4].startswith("| `far` | 0.740M | 14.10M | 2 | 76.00 ± 1.41 | **-5.00 ± ")
    assert "pooled over the rows: 1.10 (5 degrees of freedom)" in table[-1]


def test_one_seed_gives_no_interval():
    comparison = summarise([result("pale", 0, 80.0), result("other", 0, 81.0)], "pale")
    assert comparison.half_width(comparison.others[0]) is None
    *_, row, _, note = markdown(comparison).splitlines()
    assert row == "| `other` | 0.740M | 14.10M | 1 | 81.00 | +1.00 |"
    assert "One seed a row" in note


def test_a_report_needs_the_reference_and_runs_that_are_alike():
    with pytest.raises(UserError, match=r"no results of shape_pale.*there are pale, near, far"):
        summarise(SPREAD, "shape_pale")
    with pytest.raises(UserError, match="far has runs of different configurations"):
        summarise([*SPREAD, result("far", 2, 76.0, fingerprint="other")], "pale")


def test_the_report_goes_into_a_document_and_a_picture(tmp_path, capsys):
    write_results(SPREAD, tmp_path / "out" / "results.csv")
    document, picture = tmp_path / "page.md", tmp_path / "pictures" / "plot.png"
    document.write_text(f"# Head\n<!-- begin {ablate.SECTION} -->\nold\n<!-- end {ablate.SECTION} -->\ntail\n")
    for _ in range(2):
        go(tmp_path, "-report", "-reference", "pale", "-into", document, "-plot", picture)
        table = markdown(summarise(read_results(tmp_path / "out" / "results.csv"), "pale"))
        assert capsys.readouterr().out == f"{table}\n"
        begin, end = f"<!-- begin {ablate.SECTION} -->", f"<!-- end {ablate.SECTION} -->"
        assert document.read_text() == f"# Head\n{begin}\n{table}\n{end}\ntail\n"
    with Image.open(picture) as image:
        assert image.width > 500
    go(tmp_path, "-report", "-reference", "pale", "-json")
    shown = json.loads(capsys.readouterr().out)
    comparison = summarise(read_results(tmp_path / "out" / "results.csv"), "pale")
    assert [row["row"] for row in shown] == ["pale", *(row.row for row in comparison.others)]
    assert (shown[0]["difference"], shown[1]["difference"]) == (None, comparison.difference(comparison.others[0]))
    assert shown[1]["half_width"] == comparison.half_width(comparison.others[0])


@pytest.mark.parametrize("text", ["", "<!-- begin x -->", "<!-- end x --><!-- begin x -->", "<!-- begin x -->" * 2])
def test_a_document_without_the_part_is_left_alone(tmp_path, text):
    document = tmp_path / "page.md"
    document.write_text(text)
    with pytest.raises(UserError, match="must have the lines <!-- begin x --> and <!-- end x --> once"):
        replace_section(document, "x", "content")
    assert document.read_text() == text


# ---- the launcher itself


@pytest.mark.slow
def test_real_runs_survive_the_end_of_the_program(tmp_path, shapes_config):
    """Killed while two rows train, then interrupted, then left to end: the results are those of undisturbed runs."""
    files = [tmp_path / f"{name}.yaml" for name in ("a", "b")]
    for file, smoothing in zip(files, (0.0, 0.2), strict=True):
        row = f"BASE: {shapes_config.name}\nTRAIN: {{EPOCHS: 30}}\nAUG: {{LABEL_SMOOTHING: {smoothing}}}\n"
        file.write_text(f"{row}VALIDATE_EVERY: 10\n")
    flags = (*files, "-seeds", 0, "-jobs", 2, "-output", tmp_path / "out")

    def wait_for(condition) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def said(text: str) -> int:
        return sum(text in log.read_text() for log in tmp_path.glob("out/*/seed0.log"))

    process = start_program("tools/ablate.py", *flags)
    wait_for(lambda: said("step 2/180") == 2)
    process.kill()  # it alone: the runs are told by the system
    process.communicate()
    wait_for(lambda: said("; go on with -resume auto") == 2)

    process = start_program("tools/ablate.py", *flags)
    wait_for(lambda: said("resuming ") == 2)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert not read_results(tmp_path / "out" / "results.csv")

    outcome = run_program("tools/ablate.py", *flags)
    assert outcome.returncode == 0, outcome.stdout
    undisturbed = run_program("tools/ablate.py", *flags[:-1], tmp_path / "other")
    assert undisturbed.returncode == 0, undisturbed.stdout
    found, expected = (read_results(tmp_path / name / "results.csv") for name in ("out", "other"))
    assert [(r.row, r.top1, r.best_top1, r.params) for r in found] == [
        (r.row, r.top1, r.best_top1, r.params) for r in expected
    ]


# ---- the table of the documents


def test_the_page_has_the_table_of_the_results():
    results = read_results(ROOT / "results" / "ablation.csv")
    assert read_section(ROOT / "docs" / "ablation.md", ablate.SECTION) == markdown(summarise(results, "shape_pale"))

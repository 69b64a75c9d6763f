"""The ablation runner: which runs are started, skipped and resumed, and the table of their results."""

from __future__ import annotations

import multiprocessing
import signal
import time
from pathlib import Path

import pytest

from common.errors import StoppedBySignal, UserError
from common.flops import params
from common.pale_transformer import create_model
from common.runtime.csv_table import append_rows, read_table
from tests.helpers.programs import ROOT
from tools import ablate
from tools.ablate import Result, costs_of, find_configs, report
from tools.helpers.markdown import read_section

# Replaces the classification launcher. Its behavior depends on the configuration's name and on earlier starts.
LAUNCHER = """
import json, os, pathlib, signal, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
name, seed, folder = pathlib.Path(flags["-cfg"]).stem, int(flags["-seed"]), pathlib.Path(flags["-output"])
folder.mkdir(parents=True, exist_ok=True)
again = (folder / "started").exists()
(folder / "started").touch()
print("threads", os.environ["OMP_NUM_THREADS"], "resume", flags["-resume"], "options", sys.argv[9:], flush=True)
if name == "broken" and not again:
    print("error: no such data; give -data_path")
    sys.exit(2)
if name in ("long", "killed") and not again:
    def save(*_):
        (folder / "saved").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    os.kill(os.getppid(), signal.SIGINT if name == "long" else signal.SIGKILL)
    time.sleep(60)
epochs = 1 if name == "short" else 2
records = [{"kind": "val", "epoch": n, "top1": 80.0 + seed - n} for n in range(1, epochs + 1)]
(folder / "log.jsonl").write_text("".join(json.dumps(record) + "\\n" for record in records))
"""


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    path = tmp_path / "launcher.py"
    path.write_text(LAUNCHER)
    monkeypatch.setattr(ablate, "LAUNCHER", path)
    monkeypatch.setattr(ablate, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(ablate, "costs_of", lambda *_: (1000, 2000))


def config(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text("TRAIN: {EPOCHS: 2}\n")
    return path


def ablation(tmp_path: Path, *arguments: object) -> list[Result]:
    """Run the tool in this process and read its results."""
    ablate.main(["-output", str(tmp_path / "out"), *map(str, arguments)])
    return read_table(tmp_path / "out" / "results.csv", Result)


def test_each_row_is_run_with_each_seed_once(tmp_path, launcher):
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("one", "two", "base"):
        config(folder, name)
    results = ablation(tmp_path, folder, "-jobs", 2, "-seeds", 0, 2, "-opts", "LOG_INTERVAL", 1)
    figures = {(result.row, result.seed): (result.top1, result.params, result.multiply_adds) for result in results}
    assert figures == {(row, seed): (78.0 + seed, 1000, 2000) for row in ("one", "two") for seed in (0, 2)}
    printed = (tmp_path / "out" / "one" / "seed0.log").read_text()
    assert printed == "threads 1 resume auto options ['-opts', 'LOG_INTERVAL', '1']\n"

    for started in tmp_path.glob("out/*/*/started"):
        started.unlink()
    assert len(ablation(tmp_path, folder, "-seeds", 0, 1, 2)) == 6
    assert {path.parent.name for path in tmp_path.glob("out/*/*/started")} == {"seed1"}


def test_a_run_of_other_settings_is_refused(tmp_path, launcher):
    file = config(tmp_path, "one")
    ablation(tmp_path, file, "-seeds", 0)
    (tmp_path / "out" / "one" / "seed0" / "config.yaml").write_text(file.read_text())
    ablation(tmp_path, file, "-seeds", 0)
    for _ in ("finished", "without its result"):
        with pytest.raises(UserError, match=r"seed0 has a run of other settings: TRAIN\.EPOCHS was 2, is 3; .*seed 0"):
            ablation(tmp_path, file, "-seeds", 0, "-opts", "TRAIN.EPOCHS", 3)
        (tmp_path / "out" / "results.csv").unlink(missing_ok=True)


def test_runs_start_in_the_folder_of_the_user(tmp_path, launcher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launcher.py").write_text(LAUNCHER + "print('in', os.getcwd())\n")
    ablation(tmp_path, config(tmp_path, "one"), "-seeds", 0)
    assert f"in {tmp_path}\n" in (tmp_path / "out" / "one" / "seed0.log").read_text()


def test_failed_runs_are_named_and_the_others_continue(tmp_path, launcher, capsys):
    files = [config(tmp_path, name) for name in ("broken", "good", "short")]
    with pytest.raises(UserError, match=r"2 runs failed \(broken seed 0, short seed 0\)"):
        ablation(tmp_path, *files, "-seeds", 0)
    printed = capsys.readouterr().out
    assert "broken seed 0 failed: no such data; give -data_path; the whole output is in" in printed
    assert "ends with epoch 1 of 2" in printed
    assert [result.row for result in ablation(tmp_path, *files[:2], "-seeds", 0)] == ["good", "broken"]


def test_a_run_may_stop_early_or_cool_down(tmp_path, launcher):
    files = [config(tmp_path, name) for name in ("short", "one")]
    ablation(tmp_path, files[0], "-seeds", 0, "-opts", "TRAIN.EARLY_STOP", 1)
    results = ablation(tmp_path, files[1], "-seeds", 0, "-opts", "TRAIN.EPOCHS", 1, "TRAIN.COOLDOWN", 1)
    assert [(result.row, result.top1) for result in results] == [("short", 79.0), ("one", 78.0)]


def test_each_run_counts_once_beside_another_program(tmp_path, launcher, monkeypatch, capsys):
    file, run_jobs = tmp_path / "out" / "results.csv", ablate.run_jobs

    def run_beside_another(jobs, *others):
        for job in run_jobs(jobs, *others):
            append_rows(file, Result, [result("one", 0, 90.0)])
            yield job

    monkeypatch.setattr(ablate, "run_jobs", run_beside_another)
    assert len(ablation(tmp_path, config(tmp_path, "one"), "-seeds", 0)) == 1
    assert "one seed 0: another program has written its result" in capsys.readouterr().out
    append_rows(file, Result, [result("one", 0, 80.0)])
    with pytest.raises(UserError, match=r"results\.csv has several results of one seed 0; delete all but one"):
        report(read_table(file, Result), file)


def test_an_interruption_lets_the_runs_save_and_the_same_command_continues(tmp_path, launcher):
    files = [config(tmp_path, "long"), config(tmp_path, "other")]
    with pytest.raises(StoppedBySignal) as stop:
        ablation(tmp_path, *files, "-seeds", 0)
    assert stop.value.exit_code == 130
    assert (tmp_path / "out" / "long" / "seed0" / "saved").exists()
    assert not (tmp_path / "out" / "other").exists()
    assert [result.row for result in ablation(tmp_path, *files, "-seeds", 0)] == ["long", "other"]


def test_the_runs_save_and_end_when_the_tool_is_killed(tmp_path, launcher):
    context = multiprocessing.get_context("fork")
    tool = context.Process(target=ablation, args=(tmp_path, config(tmp_path, "killed"), "-seeds", 0))
    tool.start()
    tool.join(60)
    assert tool.exitcode == -signal.SIGKILL
    saved, deadline = tmp_path / "out" / "killed" / "seed0" / "saved", time.monotonic() + 20
    while not saved.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_costs_are_those_of_the_model_with_the_classes_of_the_data(shapes_config, monkeypatch):
    monkeypatch.setattr("common.flops.count_flops", lambda model, height, width: (model.num_classes, height, width))
    (config,) = find_configs([shapes_config], ["DATA.IMAGE_SIZE", "64"]).values()
    assert costs_of(shapes_config, config) == (params(create_model("pale_nano", num_classes=3)), (3, 64, 64))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-jobs", 0], "-jobs is 0"),
        (["-seeds", 1, 1], "seeds must be different"),
        (["-report"], "has no results yet"),
        (["-into", "x.md"], "-into needs -report"),
        (["no_such.yaml"], "cannot read the configuration"),
        (["."], "has no configuration"),
    ],
)
def test_mistakes_are_refused(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        ablation(tmp_path, *flags)


def test_two_configurations_of_one_name_are_refused(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(UserError, match=r"several configurations are called one\.yaml; rename them"):
        find_configs([config(tmp_path, "one"), config(tmp_path / "sub", "one")], [])


# ---- report


def result(row: str, seed: int, top1: float) -> Result:
    return Result(row, seed, top1, 740_000, 14_100_000, "0.2.0+0123abc", "a machine", "2026-01-31")


def test_the_report_has_means_deviations_and_differences(tmp_path, capsys):
    results = [result("a", 0, 75.0), result("a", 1, 77.0), result("b", 0, 80.5)]
    results += [result("shape_pale", seed, 80.0 + seed) for seed in (0, 1, 2)]
    file, document = tmp_path / "results.csv", tmp_path / "page.md"
    append_rows(file, Result, results)
    document.write_text("# Page\n\n<!-- begin ablation -->\n<!-- end ablation -->\n")
    ablate.main(["-report", "-results", str(file), "-into", str(document)])
    text = read_section(document, "ablation")
    assert [" ".join(line.split()) for line in text.splitlines()[2:5]] == [
        "| `shape_pale` | 0.740M | 14.10M | 3 | 81.00 ± 1.00 | |",
        "| `a` | 0.740M | 14.10M | 2 | 76.00 ± 1.41 | -5.00 |",
        "| `b` | 0.740M | 14.10M | 1 | 80.50 | -0.50 |",
    ]
    assert text.endswith("Standard deviation of one run, pooled over all rows: 1.15 (3 degrees of freedom).")
    assert capsys.readouterr().out.strip() == text


def test_no_row_of_a_report_reaches_the_terminal_unescaped(tmp_path):
    assert "\x1b" not in report([result("\x1b[2J", 0, 75.0), result("b", 0, 80.5)], tmp_path)


def test_the_document_has_the_table_of_the_recorded_results():
    file = ROOT / "results" / "ablation.csv"
    assert read_section(ROOT / "docs" / "ablation.md", "ablation") == report(read_table(file, Result), file)

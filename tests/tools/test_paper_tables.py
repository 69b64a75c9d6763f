"""The paper's tables: its figures as data, ours beside them, and the documents that include both."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from common.errors import UserError
from common.training.paper_figures import NEIGHBOURS, PAPER, SOURCES, PaperFigure, figures_of, find_figure
from common.training.results import Result, read_results, results_file
from tests.helpers.programs import ROOT
from tools import paper_tables
from tools.markdown_table import markdown_table
from tools.paper import documents, rows
from tools.paper.layout import aligned
from tools.paper.metrics import METRICS
from tools.paper.models import ABLATIONS, Counts, configuration
from tools.paper.rows import TABLES, TASKS, Row, counted_rows, measured, paper_rows, summaries

MODELS = ("pale_tiny", "pale_small", "pale_base")


# ---- the paper's figures


def test_every_figure_is_known_once_with_its_source():
    for task in TASKS:
        for paper in (PAPER, *NEIGHBOURS):
            figures = list(figures_of(task, paper))
            assert len({(figure.model, figure.metric) for figure in figures}) == len(figures)
            for figure in figures:
                assert figure.value > 0
                assert figure.metric in METRICS
                assert figure.paper in SOURCES
                assert figure.mark in (("P", "C") if paper == PAPER else ("",))
        complete = {figure.metric for figure in figures_of(task)}
        for model in MODELS:
            assert {figure.metric for figure in figures_of(task) if figure.model == model} == complete
            assert configuration(task, model).is_file()
    assert find_figure("image_classification", "pale_nano", "top1") is None


def figure(text: str, metric: str = "params") -> PaperFigure:
    return PaperFigure(PAPER, "image_classification", "pale_tiny", metric, text, "P")


@pytest.mark.parametrize(
    ("text", "ours", "is_off"),
    [
        ("22", 21.75, False),
        ("22", 23.0, False),
        ("22", 23.01, True),
        ("22", 20.9, True),
        ("9.0", 9.1, False),
        ("9.0", 9.11, True),
        ("9.0", 8.89, True),
    ],
)
def test_one_in_the_last_printed_digit_is_allowed(text, ours, is_off):
    row = Row("pale_tiny", "params", figure(text), ours, "counted")
    assert row.is_off == is_off
    assert row.difference == pytest.approx(ours - float(text))
    assert not Row("pale_tiny", "top1", figure(text, "top1"), ours, "measured").is_off


# ---- ours


@pytest.fixture
def recorded(monkeypatch):
    """What ``results/`` holds, to be filled by a test."""
    results: list[Result] = []
    monkeypatch.setattr(rows, "_results_of", lambda task: tuple(results))
    return results


@pytest.fixture
def counted(monkeypatch):
    """Counts that take no time: those of the paper, and a bit."""

    def count(task, model):
        return Counts(*(find_figure(task, model, metric).value + 0.04 for metric in ("params", "flops")))

    for module in (rows, documents):
        monkeypatch.setattr(module, "count", count)
    monkeypatch.setattr(documents, "count_demo", lambda task: Counts(0.94, None))
    monkeypatch.setattr(rows, "count_classifier", lambda path: Counts(21.7, 4.2))
    monkeypatch.setattr(rows, "_hours", lambda path: "~1234 A100-hours")


def result(value: str, **changes: str) -> Result:
    values = {
        "model": "PaleUPerNet pale_tiny",
        "data_set": "ADE20K",
        "metric": "mIoU",
        "value": value,
        "paper_value": "50.4",
        "checkpoint_sha256": "0123456789abcdef",
        "command": "",
        "code_version": "",
        "machine": "",
        "date": "2026-01-01T00:00Z",
    }
    return Result(**{**values, **changes})


def test_the_latest_measurement_of_a_row_stands_beside_the_papers(recorded, counted):
    recorded += [
        result("50.1", date="2026-03-01T00:00Z"),
        result("49.9"),
        result("20", date="2026-04-01T00:00Z", paper_value=""),  # of other data
        result("51.0", date="2026-04-01T00:00Z", model="PaleUPerNet pale_small"),
    ]
    assert measured("semantic_segmentation", "pale_tiny", "mIoU") == (
        50.1,
        "measured, checkpoint 01234567, 2026-03-01",
    )
    table = {(row.model, row.metric): row for row in paper_rows("semantic_segmentation")}
    assert table["pale_tiny", "mIoU"].difference == pytest.approx(-0.3)
    assert table["pale_small", "mIoU"].ours == 51.0
    assert table["pale_base", "mIoU"].origin == "not run: needs ADE20K, ~1234 A100-hours"
    assert table["pale_base", "params"].origin == "counted"


def test_runs_of_several_seeds_are_one_line_and_checkpoints_their_own(recorded):
    demo = {"paper_value": "", "data_set": "Nuclei", "checkpoint_sha256": ""}
    recorded += [result("92", **demo), result("95", **demo), result("93", **demo)]
    recorded += [result("90", **{**demo, "checkpoint_sha256": "f" * 64})]
    recorded += [result("50")]
    runs, checkpoint = summaries("semantic_segmentation")
    assert (runs.value, runs.origin) == (93, "median of 3 runs")
    assert (checkpoint.value, checkpoint.origin) == (90, "checkpoint ffffffff")


def test_results_are_readable_and_those_of_trainings_stand_in_the_document():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for task in TASKS:
        found = read_results(ROOT / results_file(task))
        assert found
        for row in found:
            if not row.checkpoint_sha256:
                assert row.value in text
                assert row.command in text


# ---- what is printed


def test_tables_fit_a_terminal_and_have_every_figure(recorded, counted, capsys):
    assert tuple(TABLES) == paper_tables.NAMES
    paper_tables.main([])
    printed = capsys.readouterr().out
    for line in printed.splitlines():
        assert len(line) <= 120, line
    for task in TASKS:
        for paper in (PAPER, *NEIGHBOURS):
            for known in figures_of(task, paper):
                assert re.search(rf"(?<![\d.]){re.escape(known.text)}(?![\d.])", printed)
    assert all(path.stem in printed for path in ABLATIONS)
    assert "A FLOP is one multiply-add" in printed


def test_json_has_the_same(recorded, counted, capsys):
    paper_tables.main(["imagenet", "neighbours", "-json"])
    tables = json.loads(capsys.readouterr().out)
    assert list(tables) == ["imagenet", "neighbours"]
    row = tables["imagenet"][0]
    assert (row["model"], row["metric"], row["paper"], row["mark"]) == ("pale_tiny", "params", 22, "P")
    assert row["ours"] == pytest.approx(22.04)
    assert row["within_one_digit"] is True
    assert {row["source"] for row in tables["neighbours"]} == {SOURCES[paper] for paper in NEIGHBOURS}


def test_check_fails_for_a_figure_that_is_off(counted, monkeypatch, capsys):
    paper_tables.main(["-check"])
    assert "none of 18 counted figures differs" in capsys.readouterr().out
    monkeypatch.setattr(rows, "count", lambda task, model: Counts(22.0, 4.2))
    with pytest.raises(SystemExit) as left:
        paper_tables.main(["--check"])
    assert left.value.code == 1
    printed = capsys.readouterr().out
    assert "16 of 18 counted figures differ" in printed
    assert printed.count("counted, too far from the paper's") == 16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["resnet"], "there is no table 'resnet'; choose of imagenet, ade20k"),
        (["coco", "-check"], "leave TABLE and -json out"),
        (["-json", "-markdown"], "leave TABLE and -json out"),
    ],
)
def test_wrong_flags_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        paper_tables.main(flags)


def test_columns_stand_below_each_other():
    cells = (["a", "value"], [["数字", "1"], ["b", "10.25"]])
    assert aligned(*cells, right=(1,)) == "a     value\n数字      1\nb     10.25"
    assert markdown_table(*cells, right=(1,)) == "| a | value |\n|------|-----:|\n| 数字 | 1 |\n| b | 10.25 |"
    padded = markdown_table(["a", "value", ""], [["name", "1", ""], ["b", "10.25", ""]], right=(1,), padded=True)
    assert padded.splitlines() == [
        "| a    | value |     |",
        "| ---- | ----: | --- |",
        "| name |     1 |     |",
        "| b    | 10.25 |     |",
    ]


# ---- the documents


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """The documents, in a folder where they may be written."""
    for document in {document for document, *_ in documents.sections()}:
        copy = tmp_path / document.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(document, copy)
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    monkeypatch.setattr(paper_tables, "ROOT", tmp_path)
    return tmp_path


def test_tables_of_documents_are_written_and_compared(counted, copies, capsys):
    paper_tables.main(["-markdown"])
    assert capsys.readouterr().out.count("wrote ") == 6
    paper_tables.main(["-markdown"])
    paper_tables.main(["-markdown", "-check"])
    assert capsys.readouterr().out == "all documents are up to date\n" * 2
    readme = copies / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert "| `pale_tiny` | 22.04M (22M) | 4.24G (4.2G) | 83.4 | 84.2 | not run |" in text
    readme.write_text(text.replace("| 83.4 |", "| 93.4 |"), encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        paper_tables.main(["-markdown", "-check"])
    assert left.value.code == 1
    assert "README.md: the table 'image_classification' is not up to date" in capsys.readouterr().out
    assert "| 93.4 |" in readme.read_text(encoding="utf-8")


@pytest.mark.slow
def test_counted_figures_are_the_papers_and_the_documents_are_up_to_date(capsys):
    paper_tables.main(["-check"])
    paper_tables.main(["-markdown", "-check"])
    printed = capsys.readouterr().out
    assert "none of 18 counted figures differs" in printed
    assert printed.endswith("all documents are up to date\n")
    assert {row.metric for task in TASKS for row in counted_rows(task)} == {"params", "flops"}

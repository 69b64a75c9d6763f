"""The paper's tables: its figures, ours beside them, and the documents that include both."""

from __future__ import annotations

import functools
import gc
import shutil
from types import SimpleNamespace

import paddle
import pytest

from common.layers import cpu_kernels
from common.pale_transformer import create_model
from common.runtime.csv_table import read_table
from common.training.results import Result, results_file
from tests.helpers.programs import ROOT
from tools import paper_tables
from tools.helpers import paper_figures, paper_layout, training_memory
from tools.helpers.markdown import markdown_table, read_section, replace_section
from tools.helpers.paper_figures import MODELS, NEIGHBORS, PAPER, TABLES, Counts, PaperFigure, configuration, printed


def test_every_figure_is_known_once_and_has_its_mark():
    figures = paper_figures._read()
    assert len({(figure.paper, figure.task, figure.model, figure.metric) for figure in figures}) == len(figures)
    for figure in figures:
        assert figure.paper in (PAPER, *NEIGHBORS)
        assert float(figure.text) > 0
        assert figure.metric in paper_layout.METRICS
        assert figure.mark in (("P", "C") if figure.paper == PAPER else ("",))
    assert all(configuration(task, model).is_file() for task in TABLES for model in MODELS)


@pytest.mark.parametrize(("text", "good", "bad"), [("22", (21, 23), (23.01, 20.9)), ("9.0", (8.9, 9.1), (9.11, 8.89))])
def test_one_unit_of_the_last_printed_digit_is_allowed(text, good, bad):
    figure = PaperFigure(PAPER, "image_classification", "pale_tiny", "params", text, "P")
    assert [figure.agrees(ours) for ours in (*good, *bad)] == [True, True, False, False]


@pytest.fixture
def counted(monkeypatch):
    """Counts that take no time: the paper's figures plus a constant; of ablations, those of pale_tiny."""

    def count(task, file):
        model = next((model for model in MODELS if model in file.name), "pale_tiny")
        return Counts(*(float(printed(task)[model, metric].text) + 0.04 for metric in ("params", "flops")))

    cost = SimpleNamespace(forward=4e9, images=1, flops=1e18, state_bytes=1e9, gpu_hours=107.6)
    monkeypatch.setattr(paper_layout, "count", count)
    monkeypatch.setattr(paper_layout, "count_demo", lambda task: Counts(0.94, None))
    memory = SimpleNamespace(state=1e9, image=1e8, recomputed=5e7)
    monkeypatch.setattr(paper_layout, "training_cost", lambda task, file: cost)
    monkeypatch.setattr(paper_layout, "training_memory", lambda task, file, amp: memory)


@pytest.fixture
def recorded(monkeypatch):
    """Recorded results of all tasks, to be filled by a test."""
    (template,) = read_table(ROOT / results_file("image_classification"), Result)[:1]
    results = []

    def add(model, data_set, metric, value, **changes):
        fields = {"checkpoint_sha256": "", "date": "2026-01-01T00:00Z", **changes}
        values = {"model": model, "data_set": data_set, "metric": metric, "value": float(value)}
        results.append(type(template)(**{**vars(template), **values, **fields}))

    monkeypatch.setattr(paper_figures, "recorded", lambda task: results)
    return add


def test_the_newest_measurement_of_a_row_is_shown_beside_the_papers(counted, recorded, capsys):
    recorded("PaleUPerNet pale_tiny", "ADE20K", "mIoU", "50.1", date="2026-03-01T00:00Z")
    recorded("PaleUPerNet pale_tiny", "ADE20K", "mIoU", "49.9")
    recorded("PaleUPerNet pale_tiny", "Dataset other", "mIoU", "20", date="2026-04-01T00:00Z")
    recorded("PaleUPerNet pale_small", "ADE20K", "mIoU", "51.0", date="2026-04-01T00:00Z")
    recorded("pale_tiny ATTENTION=axial", "ImageNet-1K", "top1", "81.5")
    paper_tables.main([])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "| pale_tiny | mIoU, % | 50.4 [P] | 50.1 | -0.3 | measured 2026-03-01 |" in lines
    assert "| pale_base | mIoU, % | 52.2 [P] | - | - | not run: ~108 A100-hours |" in lines
    assert "| pale_tiny | parameters, M | 52 [C] | 52.04 | +0.04 | counted |" in lines
    assert "| shape_axial | 22.04 | 4.24 | 81.5 |" in lines


def test_the_median_of_the_seeds_is_shown(counted, recorded):
    for value in ("92", "95", "93"):
        recorded("small", "Nuclei", "mIoU", value)
    recorded("small", "Nuclei", "mIoU", "10", checkpoint_sha256="f" * 64)  # an evaluation, not a training run
    recorded("PaleUPerNet pale_tiny", "ADE20K", "mIoU", "50")
    table = paper_layout.model_table("semantic_segmentation", "configs")
    rows = [" ".join(line.split()) for line in table.splitlines()]
    assert rows[2].startswith("| [`pale_tiny`](configs/upernet_pale_tiny_ade20k_160k.yml) | 52.04M (52M) |")
    assert rows[2].endswith("| mIoU 50.0 |")
    assert rows[-1] == "| `pale_nano` | 0.94M | - | - | - | mIoU 93.0 on nuclei (median of 3 runs) |"


def test_recorded_results_of_trainings_are_in_the_document():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for task in TABLES:
        found = read_table(ROOT / results_file(task), Result)
        assert found
        for result in found:
            if not result.checkpoint_sha256:
                assert f"{result.value:.6g}" in text
                # The document has the form without the launcher, which is the same for one process.
                assert result.command.replace("-m paddle.distributed.launch ", "") in text


def test_check_fails_for_a_figure_that_is_off(counted, monkeypatch, capsys):
    paper_tables.main(["-check"])
    assert capsys.readouterr().out == (
        "all 18 counted figures agree with the paper's, to one unit of the last printed digit\n"
    )
    monkeypatch.setattr(paper_layout, "count", lambda task, file: Counts(22.0, 4.2))
    with pytest.raises(SystemExit) as left:
        paper_tables.main(["-check"])
    assert left.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "image_classification pale_small: parameters, M: 22.00, the paper 48"
    assert lines[16] == "16 of 18 figures differ from the paper's by more than one unit of the last digit"


def test_tables_of_documents_are_written_and_compared(counted, tmp_path, monkeypatch, capsys):
    for document in {document for document, *_ in paper_layout.sections()}:
        copy = tmp_path / document.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(document, copy)
    monkeypatch.setattr(paper_layout, "ROOT", tmp_path)
    monkeypatch.setattr(paper_figures, "ROOT", tmp_path)
    paper_tables.main(["-markdown"])
    assert "README_cn.md: the table 'models' was written" in capsys.readouterr().out
    paper_tables.main(["-markdown", "-check"])
    assert capsys.readouterr().out == "all documents are up to date\n"
    readme = tmp_path / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert " 22.04M (22M) |" in text
    readme.write_text(text.replace(" 22.04M (22M) |", " 23.04M (22M) |"), encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        paper_tables.main(["-markdown", "-check"])
    assert left.value.code == 1
    assert "README.md: the table 'models' is out of date" in capsys.readouterr().out
    assert " 23.04M (22M) |" in readme.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_documents_are_up_to_date(capsys, monkeypatch):
    kept = read_section(ROOT / "docs" / "gpu.md", "memory")  # counting it takes minutes; a test below checks how
    monkeypatch.setattr(paper_layout, "memory_table", lambda: kept)
    paper_tables.main(["-markdown", "-check"])
    assert capsys.readouterr().out.endswith("all documents are up to date\n")


def test_columns_of_a_table_are_aligned():
    table = markdown_table(["a", "value", ""], [["name", "1", ""], ["b", "10.25", ""]], right=(1,))
    assert table.splitlines() == [
        "| a    | value |     |",
        "| ---- | ----: | --- |",
        "| name |     1 |     |",
        "| b    | 10.25 |     |",
    ]
    assert "\x1b" not in markdown_table(["a"], [["\x1b[2J"]], right=())  # out of a table of results


def test_the_counted_memory_is_what_a_step_holds(monkeypatch):
    """On the operations of GPUs, for which the kernels for CPUs are switched off."""
    model = create_model("pale_nano")
    model.train()
    monkeypatch.setattr(cpu_kernels, "serve", lambda x: False)
    gc.collect()  # what other tests left
    held = functools.partial(paddle.base.core.host_memory_stat_current_value, "Allocated", 0)
    before = held()
    loss = model(paddle.rand([2, 3, 64, 64])).mean()
    counted = training_memory._saved_bytes(training_memory._call, model, [2, 3, 64, 64], amp=False)
    assert held() - before == pytest.approx(counted, rel=0.1)
    loss.backward()
    assert training_memory._saved_bytes(training_memory._call, model, [2, 3, 64, 64], amp=True) < 0.9 * counted


def test_a_section_is_replaced_in_the_document_behind_a_link_with_its_ends_of_lines(tmp_path):
    (tmp_path / "real.md").write_bytes(b"a\r\n<!-- begin x -->\r\nold\r\n<!-- end x -->\r\nb\r\n")
    (tmp_path / "link.md").symlink_to("real.md")
    replace_section(tmp_path / "link.md", "x", "1\n2\n")
    assert (tmp_path / "link.md").is_symlink()
    expected = b"a\r\n<!-- begin x -->\r\n1\r\n2\r\n<!-- end x -->\r\nb\r\n"
    assert (tmp_path / "real.md").read_bytes() == expected
    assert read_section(tmp_path / "link.md", "x") == "1\n2"

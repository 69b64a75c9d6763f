"""The cost of training: what is counted is what a hand counts, and the arithmetic is as documented."""

import json

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.base.core import host_memory_stat_current_value

from common.errors import UserError
from common.flops import count_flops, params
from common.pale_attention import PSAttention
from common.pale_transformer import create_model
from tests.helpers.programs import ROOT
from tools import training_cost
from tools.costing import counts
from tools.costing.counts import TrainingCounts, count_training
from tools.costing.gpus import A100, H100, training_flops, training_gigabytes, training_hours
from tools.costing.kept_memory import count_kept_bytes
from tools.helpers.markdown import read_section

CONFIGS = ROOT / "image_classification/configs"


def test_kept_tensors_are_counted_once_and_parameters_not_at_all():
    # The first layer keeps its input, GELU what it gets, the second layer its input.
    layer = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2))
    assert count_kept_bytes(layer, [7, 3]) == 4 * 7 * (3 + 5 + 5)
    assert layer.training
    layer.eval()
    count_kept_bytes(layer, [7, 3])
    assert not layer.training


class Twice(nn.Layer):
    def forward(self, x):
        x.stop_gradient = False
        return x * x + x.exp()


def test_a_tensor_that_two_operations_keep_counts_once():
    assert count_kept_bytes(Twice(), [1000]) == 4 * 1000 * 2  # x, and exp's own output


def test_counting_keeps_nothing_itself():
    before = host_memory_stat_current_value("Allocated", 0)
    count_kept_bytes(Twice(), [1000])  # exp would keep its own output, and so itself
    assert host_memory_stat_current_value("Allocated", 0) == before


def test_kept_memory_grows_with_the_image_and_holds_no_score_matrix():
    attention = PSAttention(8, 2)
    small, large = (count_kept_bytes(attention, [1, side, side, 8]) for side in (28, 56))
    assert large == pytest.approx(4 * small, rel=0.01)
    assert large < 56 * 56 * 7 * 56 * 4  # what the scores of one half alone would take


def test_counting_leaves_the_model_as_it_was():
    paddle.seed(0)
    model = create_model("pale_nano")
    model.eval()
    before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items() if "norm._" not in name}
    count_kept_bytes(model, [1, 3, 32, 32])
    assert all(np.array_equal(model.state_dict()[name].numpy(), array) for name, array in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())


COUNTS = TrainingCounts(parameters=10**7, averaged=True, forward=10**9, kept=10**8, images=10**6, batch=32)


def test_arithmetic_is_the_documented_one():
    assert training_flops(COUNTS) == 6e15
    assert training_hours(COUNTS, A100) == pytest.approx(6e15 / (312e12 * 0.08) / 3600)
    assert training_hours(COUNTS, H100, 8) == pytest.approx(6e15 / (8 * 989e12 * 0.04) / 3600)
    assert training_gigabytes(COUNTS) == pytest.approx((10**7 * 4 * 5 + 32 * 10**8 / 2) / 1e9)


@pytest.fixture(scope="module")
def tiny():
    return count_training(CONFIGS / "pale_tiny_224.yaml")


def test_classification_is_counted_from_its_configuration(tiny):
    model = create_model("pale_tiny")
    assert tiny.parameters == params(model)
    assert tiny.forward == count_flops(model, 224, 224)
    assert (tiny.images, tiny.batch, tiny.averaged) == (300 * 1_281_167, 128, True)


@pytest.mark.slow
def test_segmentation_and_detection_are_counted_as_in_training():
    upernet = count_training(ROOT / "semantic_segmentation/configs/upernet_pale_tiny_ade20k_160k.yml")
    assert (upernet.images, upernet.batch) == (160_000 * 16, 2)
    # A little less than a quarter of the paper's 996G at 512x2048, where pales are longer.
    assert 0.23e12 < upernet.forward < 0.249e12
    detector = count_training(ROOT / "object_detection/configs/mask_rcnn_pale_tiny_1x_coco.yml")
    assert (detector.images, detector.batch) == (12 * 117_266, 2)
    assert 0.30e12 < detector.forward < 0.33e12


def cells_in(document):
    """The rows of the table, heading first."""
    lines = read_section(document, training_cost.SECTION).splitlines()
    return [line.strip("| ").split(" | ") for line in lines[:1] + lines[2:]]


def test_the_document_has_every_row_of_the_paper_and_the_tools_figures(tiny):
    header, *table = cells_in(ROOT / "docs/reproduction.md")
    assert header == training_cost.header((A100, H100))
    named = [row[0].strip("`") for row in table]
    assert named == [str(path.relative_to(ROOT)) for path in training_cost.rows()], "run tools/training_cost.py -into"
    assert training_cost.line(CONFIGS / "pale_tiny_224.yaml", tiny, (A100, H100)) in table


def test_table_goes_between_the_marks(tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(counts, "count_training", lambda path: tiny)
    document = tmp_path / "d.md"
    document.write_text("before\n<!-- begin training_cost.py -->\nold\n<!-- end training_cost.py -->\nafter\n")
    training_cost.main(["-into", str(document), "-rows", "pale_tiny_224", "-a100", "0.16"])
    _, row = cells_in(document)
    assert row[0] == "`image_classification/configs/pale_tiny_224.yaml`"
    assert row[6] == "54 h"
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text


def test_json_has_what_the_table_rounds(monkeypatch, capsys):
    monkeypatch.setattr(counts, "count_training", lambda path: COUNTS)
    training_cost.main(["-rows", "pale_tiny_224", "-json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["configuration"], row["images"]) == ("image_classification/configs/pale_tiny_224.yaml", 10**6)
    assert row["hours"]["H100"]["8"] == training_hours(COUNTS, H100, 8)
    assert row["gigabytes"] == training_gigabytes(COUNTS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-rows", "resnet*"], r"no row of the paper is called resnet\*"),
        (["-a100", "0"], "-a100 is 0; it must be above 0"),
        (["-h100", "2"], "-h100 is 2"),
        (["-into", str(ROOT / "LICENSE")], "LICENSE must have the lines"),
    ],
)
def test_wrong_flags_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        training_cost.main(flags)

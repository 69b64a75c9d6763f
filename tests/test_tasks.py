"""The table of the tasks names parts that exist."""

from argparse import Namespace

import numpy as np
import pytest

from common.checkpoints.file_format import save_file
from common.checkpoints.loading import numpy_state
from common.errors import UserError
from common.inference.predictor import Predictor
from common.tasks import TASKS
from common.training.config import TaskConfig
from common.training.task import Task
from tests.helpers.programs import ROOT
from tests.helpers.tiny_runs import load, run
from tools import export, visualize

FIXTURES = {
    "image_classification": "shapes_config",
    "semantic_segmentation": "squares_config",
    "object_detection": "boxes_config",
}


def test_every_part_of_every_task_exists():
    for task in TASKS.values():
        assert isinstance(task.config(), TaskConfig)
        assert issubclass(task.task(), Task)
        assert issubclass(task.predictor(), Predictor)
        assert callable(task.exportable())
        assert callable(task.build_model())


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("image_classification", "finetune_folder_cpu.yaml"),
        ("semantic_segmentation", "upernet_pale_nano_own_data.yml"),
        ("object_detection", "mask_rcnn_pale_nano_own_data.yml"),
    ],
)
def test_own_data_without_its_configuration_is_refused_with_the_name_of_one(tmp_path, name, own):
    config = f"{name}/configs/{own}"
    assert (ROOT / config).is_file()
    with pytest.raises(UserError, match=rf"is demo data and takes no -data_path; .*photos give -cfg {config}"):
        load(TASKS[name].config(), "-data_path", tmp_path / "photos")


@pytest.mark.parametrize("name", FIXTURES)
def test_outputs_that_are_not_finite_are_neither_evaluated_nor_shown(tmp_path, request, name):
    task, config_file = TASKS[name], request.getfixturevalue(FIXTURES[name])
    config = task.config().load(Namespace(cfg=config_file, opts=[]))
    weights = numpy_state(task.build_model()(config, 3))
    huge = {key: np.full_like(array, 3e38) if array.ndim == 1 else array for key, array in weights.items()}
    file = tmp_path / "huge.pdparams"
    save_file({"model": huge, "task": name, "config": task.config().dump(config), "class_names": list("abc")}, file)
    with pytest.raises(UserError, match="the outputs of the model are not finite"):
        run(task.task(), config_file, "-eval", "-pretrained", file)
    image = next(path for path in tmp_path.rglob("*.png") if "mask" not in str(path))
    with pytest.raises(UserError, match="the outputs of the model are not finite"):
        visualize.main([str(image), "-pretrained", str(file), "-out", str(tmp_path / "out"), "-show", "attention"])
    with pytest.raises(UserError, match="the outputs of the model are not finite"):
        export.main(["-pretrained", str(file), "-out", str(tmp_path / "export"), "-formats", "paddle"])


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("semantic_segmentation", "ABSENT_CLASSES", "zero"),
        ("semantic_segmentation", "test_config", "{is_slide: true, crop_size: [64, 64], stride: [32, 32]}"),
        ("object_detection", "EvalReader.sample_transforms", "[{Decode: {}}, {Permute: {}}]"),
    ],
)
def test_another_measure_of_a_continued_run_is_a_difference(name, key, value):
    spec = TASKS[name].config()
    differences = spec.differences(load(spec), load(spec, "-opts", key, value))
    assert any(line.startswith(key) for line in differences), differences

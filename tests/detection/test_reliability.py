"""Object detection: batches without objects, training that is killed, and several ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from common.checkpoints.file_format import load_file
from object_detection.detection import Detection
from tests.helpers import detection_runs
from tests.helpers.detection_runs import LAUNCHER, load
from tests.helpers.programs import ROOT, run_program, start_program
from tests.helpers.tiny_runs import assert_same_training, kill, wait_for_steps

# Random numbers in samples, batches, model and sampling; accumulation; an interval that leaves unsaved steps behind.
BATCHES = (
    "[{BatchRandomResize: {target_size: [[64, 64], [96, 96], [64, 96]], keep_ratio: false, random_interp: true}}, "
    "{NormalizeImage: {is_scale: true, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}, {Permute: {}}, "
    "{PadBatch: {pad_to_stride: 32}}]"
)
OPTIONS = (
    "-accum_iter", "2", "-batch_size", "1", "-opts", "PaleTransformer.drop_path_rate", "0.2", "TRAIN.EMA_DECAY", "0.9",
    "TrainReader.sample_transforms", "[{Decode: {}}, {RandomFlip: {prob: 0.5}}]",
    "TrainReader.batch_transforms", BATCHES, "VALIDATE_EVERY", "4", "CHECKPOINT_EVERY", "4", "PICTURES", "0",
)  # fmt: skip


def run(config: Path, *flags: object, ranks: int = 0) -> str:
    result = run_program(LAUNCHER, "-cfg", config, *flags, ranks=ranks, cwd=config.parent)
    assert result.returncode == 0, result.stdout
    assert "Traceback" not in result.stdout
    return result.stdout


def keep_objects(folder: Path, images: set[int]) -> None:
    """Leave only these training images their objects."""
    file = folder / "annotations" / "train.json"
    coco = json.loads(file.read_text())
    coco["annotations"] = [row for row in coco["annotations"] if row["image_id"] in images]
    file.write_text(json.dumps(coco))


# ---- one process


def test_reading_processes_pass_on_images_without_objects(boxes_config):
    task = Detection(load("-cfg", boxes_config, "-batch_size", "5", "-opts", "DATA.NUM_WORKERS", "1"))
    training = task.build_training(resumed=False)
    (batch,) = training.loader
    batch |= batch["objects"].tensors()
    counts = {len(rows) for rows in batch["gt_bbox"]}
    assert counts == {0, 2}, "one of the images is empty"
    for key, width, dtype in (("gt_bbox", 4, "float32"), ("gt_class", 1, "int32"), ("is_crowd", 1, "int32")):
        assert {(rows.shape[1], str(rows.numpy().dtype)) for rows in batch[key]} == {(width, dtype)}, key
        assert [len(rows) for rows in batch[key]] == [len(polygons) for polygons in batch["gt_poly"]]


# ---- interruptions


@pytest.mark.slow
def test_a_killed_run_of_two_ranks_resumes_to_identical_weights(tmp_path, boxes_config):
    flags = ("-cfg", boxes_config, "-epochs", "8", *OPTIONS, "DATA.NUM_WORKERS", "0", "LATEST_EVERY", "3")
    flags += ("TRAIN.SYNC_BN", "True")
    run(boxes_config, "-output", tmp_path / "a", *flags[2:], ranks=2)
    process = start_program(LAUNCHER, "-output", tmp_path / "b", *flags, ranks=2, cwd=tmp_path)
    wait_for_steps(process, tmp_path / "b", 5)
    kill(process)
    resumed = run(boxes_config, "-resume", "auto", "-output", tmp_path / "b", *flags[2:], ranks=2)
    assert re.search(r"resuming .*latest\.pdparams after epoch \d/8, step [1-9]", resumed), resumed
    assert "differs from" not in resumed
    assert_same_training(tmp_path / "a", tmp_path / "b")


# ---- several ranks


@pytest.mark.slow
def test_evaluation_on_two_ranks_gives_exactly_the_figures_of_one(tmp_path, boxes_config):
    options = ("-opts", "VALIDATE_EVERY", "20", "CHECKPOINT_EVERY", "20", "LearningRate.base_lr", "0.005")
    detection_runs.run(boxes_config, "-epochs", "20", *options)
    flags = ("-eval", "-pretrained", tmp_path / "out" / "best", "-output")
    alone = detection_runs.run(boxes_config, *flags, tmp_path / "alone")
    output = run(boxes_config, *flags, tmp_path / "ranks", ranks=2)  # of three images
    assert alone["box_AP"] > 0
    assert f"box_AP {alone['box_AP']:.6g} " in output
    for kind in ("bbox", "segm"):
        first, second = ((tmp_path / name / f"eval_{kind}.json").read_text() for name in ("alone", "ranks"))
        assert first == second


RANK = """\
import sys
sys.path[:0] = [{root!r}]
import numpy as np
from tests.helpers.detection_runs import load
from common.runtime.distributed import rank
from common.runtime.command_line import run
from common.training.run import run_task
from object_detection.detection import Detection

class Kept(Detection):
    def build_training(self, resumed):
        self.training, self.seen = super().build_training(resumed), []
        loss = self.training.compute_loss
        def count(model, batch, rng):
            self.seen.append(sum(map(len, batch["objects"].fields["gt_poly"])))
            return loss(model, batch, rng)
        self.training.compute_loss = count
        return self.training

def main(argv):
    task = Kept(load(*{flags!r}))
    run_task(task)
    weights = np.concatenate([p.numpy().ravel() for p in task.training.model.parameters() if not p.stop_gradient])
    np.savez({folder!r} + f"/{{rank()}}.npz", weights=weights, seen=task.seen)

if __name__ == "__main__":
    run(main)
"""


@pytest.mark.slow
def test_ranks_end_with_equal_weights_where_one_has_no_object(tmp_path, boxes, boxes_config):
    keep_objects(boxes, {100, 101})
    flags = ["-cfg", str(boxes_config), "-batch_size", "1", "-accum_iter", "2", "-epochs", "4"]
    program = tmp_path / "program.py"
    program.write_text(RANK.format(root=str(ROOT), flags=flags, folder=str(tmp_path)))
    result = run_program(str(program), ranks=2, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-3000:]
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    assert (np.array([first["seen"], second["seen"]]) > 0).sum(0).tolist().count(1) >= 2, (
        "steps of one rank with objects"
    )
    assert np.isfinite(first["weights"]).all()
    np.testing.assert_array_equal(first["weights"], second["weights"])
    kept = load_file(tmp_path / "out" / "latest.pdparams")["model"]
    assert all(np.isfinite(array).all() for array in kept.values())

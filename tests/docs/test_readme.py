"""Every command of the documents is run, in their order and in one folder, as a new user would.

Only what a test machine cannot bear is changed, and ``CHANGES`` is the whole list: shorter training, smaller images, a
small stand-in for ImageNet. A command that the README gains must be listed, or the test fails.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import paddle
import pytest
from nbclient import NotebookClient
from PIL import Image

from common.checkpoints.released import list_weights
from common.demo_data.folders import write_nuclei_detection
from common.demo_data.wheels import load_mnist5k
from common.pale_transformer import create_model
from image_classification.transforms import EvalTransform
from tests.helpers.made_up_data import make_shapes, make_squares
from tests.helpers.programs import ROOT, cpu_seconds

SHORT = (
    "-image_size 32 -batch_size 2 -opts MODEL.NAME pale_nano TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 DATA.NUM_WORKERS 0"
)
DIGITS_SHORT = "-opts TRAIN.EPOCHS 1"
SMALL = (
    "-iters 1 -batch_size 1 -opts model.backbone.variant pale_nano model.channels 32 model.aux_channels 16 "
    "DATA.NUM_WORKERS 0"
)
FEW_OBJECTS = "TrainDataset.sample_num 4 EvalDataset.sample_num 1"
SMALL_DETECTOR = (
    "-epochs 1 -batch_size 1 -opts PaleTransformer.variant pale_nano FPN.out_channel 32 TwoFCHead.out_channel 32 "
    "MaskFeat.num_convs 1 MaskFeat.out_channel 16 RPNHead.train_proposal.post_nms_top_n 50 DATA.NUM_WORKERS 0 "
    f"TrainReader.sample_transforms.1.RandomResize.target_size '[[128, 128]]' {FEW_OBJECTS}"
)
FEW_CLOTHES = "DATA.DATA_PATH fashion DATA.BATCH_SIZE 8 LOG_INTERVAL 1"
TWO_ROWS = (
    "image_classification/configs/ablation_small/shape_pale.yaml "
    f"image_classification/configs/ablation_small/shape_global.yaml -seeds 0 -opts {FEW_CLOTHES}"
)
ELSEWHERE = None  # run by another test

# A part of the command -> flags to append
CHANGES: dict[str, str | None] = {
    "bash tools/setup.sh && .venv/bin/python -m pytest": ELSEWHERE,  # this run
    "bash tools/setup.sh && .venv/bin/python -m paddle": DIGITS_SHORT,  # in full by test_the_bare_command below
    "source .venv/bin/activate": "",
    "-eval -pretrained output/pale_nano_mnist5k": "",
    "predict.py docs/digit.png": "",
    "export.py -pretrained": "",
    "-resume auto -opts LATEST_EVERY 20": "TRAIN.EPOCHS 3",
    "-resume output/pale_nano_mnist5k/latest.pdparams -opts TRAIN.EPOCHS 32": "",
    "configs/finetune_folder.yaml": "TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 DATA.NUM_WORKERS 0",
    "predict.py my_photos": "",
    "--nnodes 2": ELSEWHERE,  # test_reliability.py, two launches on this machine
    "configs/pale_tiny_224.yaml -data_path imagenet": SHORT + " MODEL.NUM_CLASSES 3",
    "configs/ablation/shape_cross.yaml": SHORT + " MODEL.NUM_CLASSES 3",
    "make_label_maps.py -pretrained output/pale_tiny_224": "",
    "configs/pale_tiny_224_token_label.yaml": SHORT + " MODEL.NUM_CLASSES 3",
    "-eval -pretrained output/pale_tiny_224": "-image_size 32 -opts MODEL.NAME pale_nano MODEL.NUM_CLASSES 3",
    "predict.py imagenet/val": "",
    "-output output/mnist_seed": DIGITS_SHORT,
    "plot_curves.py output/mnist_seed0": "",
    "apt-get install dataset-fashion-mnist": ELSEWHERE,  # a stand-in of 40 images is made
    "pale_nano_fashion_mnist.yaml": "-data_path fashion -opts TRAIN.EPOCHS 1 DATA.BATCH_SIZE 8 LOG_INTERVAL 1",
    "plot_curves.py output/pale_nano_fashion_mnist": "",
    "-eval -pretrained mnist5k": "",
    # In full by test_segmentation.py.
    "semantic_segmentation/main_multi_gpu.py": "-iters 2 -opts VALIDATE_EVERY 2 LOG_INTERVAL 1",
    "predict.py data/nuclei_segmentation": "",
    "upernet_own_data.yml -data_path my_data -num_classes 3 -check_data": "",
    "upernet_own_data.yml -data_path my_data -num_classes 3": SMALL,
    "-eval -pretrained output/upernet_own_data": "",
    "predict.py my_data/images": "",
    "upernet_pale_nano_nuclei.yml -data_path my_data": "iters 1 VALIDATE_EVERY 1 LOG_INTERVAL 1",
    "upernet_pale_tiny_ade20k_160k.yml -data_path ADEChallengeData2016": SMALL,
    "plot_curves.py output/nuclei_seed0": "",
    # In full by test_detection.py.
    "object_detection/main_multi_gpu.py": f"-epochs 1 -opts VALIDATE_EVERY 1 LOG_INTERVAL 1 {FEW_OBJECTS}",
    "predict.py data/nuclei_detection": "",
    "mask_rcnn_own_data.yml -data_path my_data -check_data": "",
    "mask_rcnn_own_data.yml -data_path my_data": SMALL_DETECTOR,
    "-eval -pretrained output/mask_rcnn_own_data": "",
    "predict.py my_data/val": "",
    "mask_rcnn_pale_nano_nuclei.yml -data_path my_data": f"epoch 1 VALIDATE_EVERY 1 LOG_INTERVAL 1 {FEW_OBJECTS}",
    "mask_rcnn_pale_tiny_1x_coco.yml -data_path coco": SMALL_DETECTOR + " LearningRate.schedulers.1.steps 1",
    "plot_curves.py output/detection_seed0": "",
    "pip install": ELSEWHERE,  # tools/setup.sh does the same
    "git clone": ELSEWHERE,
    "-eval -pretrained output/upernet_pale_tiny_ade20k_160k": "val_dataset.transforms.0.short_size 64",
    "PALE_UNOFFICIAL_CODE": ELSEWHERE,  # code that is not ours, see test_reproduction.py
    "tools/paper_tables.py": "here",
    "tools/paper_tables.py -markdown": ELSEWHERE,  # test_paper_tables.py
    "tools/paper_tables.py ablations": ELSEWHERE,  # test_paper_tables.py
    "tools/paper_tables.py -check": ELSEWHERE,  # test_paper_tables.py
    "ablate.py -jobs 2": TWO_ROWS,
    "ablate.py -list": TWO_ROWS,
    "ablate.py -report": "",
    "load('china.jpg')": "",
    "bash tools/build_site.sh": ELSEWHERE,  # test_site.py
    "http.server": ELSEWHERE,  # runs until it is stopped
    "visualdl --logdir": ELSEWHERE,  # runs until it is stopped, see test_watching.py
    "visualize.py docs/digit.png": "",
    "visualize.py photo.png": "",
    "visualize.py data/nuclei_segmentation": "",
    "visualize.py output/both.png": "-pretrained output/finetune_folder/best.pdparams -label roses",
    "-output output/rate": FEW_CLOTHES,
    "benchmark.py pale_tiny": "-rounds 1 -batch 1 -size 32",
}
DOCUMENTS = (
    "README.md",
    "image_classification/README.md",
    "semantic_segmentation/README.md",
    "object_detection/README.md",
    "docs/results.md",
    "docs/reliability.md",
    "docs/multi_node.md",
    "docs/paddleseg.md",
    "docs/paddledetection.md",
    "docs/performance.md",
    "docs/reproduction.md",
    "docs/visualization.md",
    "docs/watching.md",
    "docs/ablation.md",
    "docs/deployment.md",
)


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(document: str) -> list[str]:
    return [line for block in blocks(document, "bash") for line in block.splitlines() if line.strip()]


def change(command: str) -> str | None:
    keys = [key for key in CHANGES if key in command]
    assert keys, f"no test knows this command: {command}"
    # A command with --nnodes or -eval matches the plain training's key, too: the most particular one counts.
    return CHANGES[max(keys, key=lambda key: ("--nnodes" in key, "-eval" in key, len(key)))]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The project in a folder of its own, with the data that the README speaks of."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (
        "common",
        "image_classification",
        "object_detection",
        "semantic_segmentation",
        "tools",
        "docs",
        "results",
    ):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.glob("requirements*.txt"):
        shutil.copy(file, folder)
    if (ROOT / ".venv").is_dir():
        (folder / ".venv").symlink_to(ROOT / ".venv")
    if (ROOT / "data").is_dir():
        (folder / "data").symlink_to(ROOT / "data")
    make_shapes(folder / "my_photos", 6)
    (folder / "output").mkdir()
    shutil.copy(folder / "my_photos" / "red" / "00.png", folder / "output" / "both.png")
    (folder / "my_photos" / "red").rename(folder / "my_photos" / "roses")
    for split, images in (("train", 6), ("val", 3)):
        make_shapes(folder / "imagenet" / split, images)
        lines = [
            f"{split}/{name}/{number:02d}.png {label}"
            for label, name in enumerate(("blue", "green", "red"))
            for number in range(images)
        ]
        (folder / "imagenet" / f"{split}_list.txt").write_text("\n".join(lines))
    make_squares(folder / "my_data")
    for split, long in (("train", "training"), ("val", "validation")):
        for part, kind, suffix in (("images", "images", "jpg"), ("masks", "annotations", "png")):
            (folder / "ADEChallengeData2016" / kind / long).mkdir(parents=True)
            for file in (folder / "my_data" / part).glob(f"{split}*"):
                pixels = np.minimum(np.asarray(Image.open(file)), 150 if part == "masks" else 255)
                Image.fromarray(pixels).save(folder / "ADEChallengeData2016" / kind / long / f"{file.stem}.{suffix}")
    nuclei = write_nuclei_detection(folder / "nuclei")
    for name, suffix in (("my_data", ""), ("coco", "2017")):
        shutil.copytree(nuclei, folder / name, dirs_exist_ok=True)
        for split in ("train", "val"):
            annotations = folder / name / "annotations"
            prefix = "instances_" if suffix else ""
            (annotations / f"instances_{split}.json").rename(annotations / f"{prefix}{split}{suffix}.json")
            (folder / name / split).rename(folder / name / f"{split}{suffix}")
    (folder / "fashion").mkdir()
    for split in ("train", "t10k"):
        images, labels = np.zeros((40, 28, 28), np.uint8), np.arange(40, dtype=np.uint8) % 10
        for name, magic, array in (("images-idx3", 0x803, images), ("labels-idx1", 0x801, labels)):
            header = np.array([magic, *array.shape], ">u4").tobytes()
            (folder / "fashion" / f"{split}-{name}-ubyte").write_bytes(header + array.tobytes())
    return folder


def shell(command: str, folder, timeout: int = 400) -> str:
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"  # noqa: PTH120 (not resolved: a venv)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}"
    return result.stdout


def run_python(code: str, folder) -> str:
    """What it prints; libraries' warnings go elsewhere."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


@pytest.mark.slow
def test_the_commands_of_the_documents_work_in_their_order(checkout):
    if not (ROOT / ".venv").is_dir():
        pytest.skip("the README's commands need the .venv that tools/setup.sh makes")
    for document in DOCUMENTS:
        for command in commands(document):
            extra = change(command)
            if extra is not None:
                if "-resume" in command:
                    command = command.replace("EPOCHS 32", "EPOCHS 2")
                shell(f"{command} {extra}", checkout)
    classify, segment, detect, run_by_paddle = blocks("docs/deployment.md", "python")
    run_by_paddle = f"{classify}{run_by_paddle}print(logits.argmax())"
    printed = [run_python(code, checkout) for code in (run_by_paddle, segment, detect)]
    assert printed[0].startswith("7 89.2%\n")
    assert printed[0].endswith("\n7\n")
    assert re.fullmatch(r"{'background': '[\d.]+%', 'nucleus': '[\d.]+%'}\n", printed[1])
    assert re.match(r"nucleus 0\.\d+ \[", printed[2])
    assert (checkout / "output" / "finetune_folder" / "best.pdparams").is_file()
    assert (checkout / "output" / "pale_tiny_224" / "best.pdparams").is_file()


@pytest.mark.slow
def test_the_tutorial_runs_and_shows_what_is_stored_in_it(checkout):
    """What a reader sees was printed by this code; accuracies may differ in the last digits from machine to machine."""
    file = checkout / "docs" / "tutorial.ipynb"
    stored = nbformat.read(file, 4)
    began = cpu_seconds()
    notebook = nbformat.read(file, 4)
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(file.parent)}}).execute()
    assert cpu_seconds() - began < 300
    for cell, old in zip(notebook.cells, stored.cells, strict=True):
        kinds, old_kinds = ([output.output_type for output in c.get("outputs", [])] for c in (cell, old))
        assert [kind for kind in kinds if kind != "stream"] == [kind for kind in old_kinds if kind != "stream"]
    outputs = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(outputs).replace("\r", "")  # programs write to a terminal
    assert float(re.search(r"best: top1 ([\d.]+)", printed)[1]) >= 85
    assert re.search(r"flower/00.jpg\n +[\d.]+ %  flower\n", printed)
    assert not re.search(r"^ *(/home|/root|/work|/tmp|Traceback)", json.dumps(stored), re.MULTILINE)


def test_every_command_is_known():
    for document in DOCUMENTS:
        found = commands(document)
        assert found
        for command in found:
            change(command)


def test_the_python_examples_of_the_documents_run_and_print_what_stands_there(capsys):
    examples = 0
    for document in DOCUMENTS[2:-1]:  # those of the last need what was exported before
        for example in blocks(document, "python"):
            exec(example, {})
            printed = capsys.readouterr().out
            examples += 1
            if document == "docs/multi_node.md":
                assert printed
                assert printed.strip() in (ROOT / document).read_text(encoding="utf-8")
    assert examples >= 2


def test_the_python_example_does_what_its_comments_say():
    (example,) = blocks("README.md", "python")
    names: dict = {}
    exec(example, names)
    assert str(names["list_models"]()) in example
    assert names["logits"].shape == [2, 10]
    assert [-(-200 // stride) for stride in (4, 8, 16, 32)] == [x.shape[2] for x in names["maps"]]


def test_links_of_the_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*_*/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.slow
def test_the_bare_command_learns_the_digits_within_four_minutes(tmp_path, checkout):
    """One of the three seeds of docs/results.md."""
    began = cpu_seconds()
    command = "python -m paddle.distributed.launch image_classification/main_multi_gpu.py"
    output = shell(f"{command} -output {tmp_path / 'out'}", checkout, timeout=900)
    assert cpu_seconds() - began < 240
    assert float(re.findall(r"val +top1 ([\d.]+)", output)[-1]) >= 96.0


def test_released_weights_have_the_accuracy_that_stands_in_the_table(capsys):
    """The digits; Fashion-MNIST's test images are not on every machine."""
    (row,) = [row for row in list_weights("pale_nano") if row.tag == "mnist5k"]
    model = create_model("pale_nano", pretrained="mnist5k")
    model.eval()
    _, (images, labels) = load_mnist5k()
    transform = EvalTransform(32, 1.0, "bilinear", [0.1307] * 3, [0.3081] * 3)
    batch = np.stack([transform(Image.fromarray(image).convert("RGB")) for image in images])
    with paddle.no_grad():
        predicted = model(paddle.to_tensor(batch)).argmax(-1).numpy()
    assert 100.0 * (predicted == labels).mean() == pytest.approx(row.top1, abs=0.05)

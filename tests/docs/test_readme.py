"""The commands and Python examples of the documents.

Every command is parsed, and its configuration is read. Those of README.md are also run, in their order and in one
folder, as a new user would. ``EXTRA`` shortens what takes long, ``NOT_RUN`` names what is run elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from unittest.mock import patch

import nbformat
import paddle
import pytest
from nbclient import NotebookClient

from common.flops import params
from common.inference.export_formats import open_onnx
from common.layers.variants import VARIANTS
from common.pale_transformer import create_model
from common.tasks import TASKS
from tests.helpers.commands import blocks, check_command, commands
from tests.helpers.made_up_data import make_shapes
from tests.helpers.programs import ROOT

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md")])
PRODUCT = ("common", "image_classification", "object_detection", "semantic_segmentation", "tools", "docs")

NOT_RUN = (
    *("bash tools/setup.sh", "source .venv", "pip install"),  # .ci/run, tests/test_package.py
    *("ADEChallengeData2016", "-data_path coco"),  # tests/segmentation, tests/detection
)
# Part of a command -> flags to append. The training on MNIST-5k is not shortened.
EXTRA = {
    "configs/finetune_folder": "-opts TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 DATA.NUM_WORKERS 0",
    "pale_tiny_224.yaml -data_path imagenet": "-image_size 32 -batch_size 2 -opts MODEL.NAME pale_nano "
    "MODEL.NUM_CLASSES 3 TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 DATA.NUM_WORKERS 0",
    "semantic_segmentation/main_multi_gpu.py": "-iters 2 -opts VALIDATE_EVERY 2 LOG_INTERVAL 1",
    "object_detection/main_multi_gpu.py": "-epochs 1 -opts VALIDATE_EVERY 1 LOG_INTERVAL 1 "
    "TrainDataset.sample_num 4 EvalDataset.sample_num 1",
}


def of_checkout(example: str) -> str:
    """An example with ``common`` in place of the installed package, which tests/test_package.py runs."""
    return re.sub(r"\b(from|import) pale_transformer\b", r"\1 common", example)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_commands_are_valid(document):
    for command in commands(document):
        check_command(command)
        for file in re.findall(r"bash (\S+\.sh)|-r (requirements\S*)", command):
            assert (ROOT / "".join(file)).is_file(), command


def test_the_links_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *DOCUMENTS]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert "://" in target or (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_python_example_of_the_readme_does_what_its_comments_say():
    (example,) = blocks(ROOT / "README.md", "python")
    names: dict = {}
    exec(of_checkout(example), names)
    assert str(names["list_models"]()) in example
    assert names["logits"].shape == [2, 10]
    assert [-(-200 // stride) for stride in (4, 8, 16, 32)] == [x.shape[2] for x in names["maps"]]


def test_the_python_examples_of_the_other_documents_run(capsys):
    for document in DOCUMENTS:
        # See above, and the commands of the README below; the scripts of the FAQ need an environment of their own.
        if document.name in ("README.md", "deployment.md", "faq.md"):
            continue
        for example in blocks(document, "python"):
            with (
                paddle.LazyGuard() if document.name == "multi_node.md" else nullcontext(),  # it only counts
                patch.dict(VARIANTS),  # takes away what an example registers
            ):
                exec(of_checkout(example), {})
            printed = capsys.readouterr().out
            if document.name in ("library.md", "api.md"):
                assert all(
                    f"# {line}" in example for line in printed.splitlines() if not line.startswith((" ", "weights"))
                )
            if document.name == "multi_node.md":
                assert printed.strip() in document.read_text(encoding="utf-8")


def test_the_results_count_parameters_as_the_tables_do():
    tables = "".join((ROOT / task / "README.md").read_text(encoding="utf-8") for task in TASKS)
    digits = f"{params(create_model('pale_nano', num_classes=10)) / 1e6:.2f}M"
    counts = re.findall(r"([\d.]+M)\s+parameters", (ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    assert digits in counts
    assert all(count == digits or count in tables for count in counts)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the project, with small data under the names that the README uses."""
    for name in PRODUCT:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    if (ROOT / "data").is_dir():
        (tmp_path / "data").symlink_to(ROOT / "data")
    for split in ("train", "val"):
        make_shapes(tmp_path / "imagenet" / split, 4)
        files = sorted((tmp_path / "imagenet" / split).glob("*/*.png"))
        lines = [f"{file.relative_to(tmp_path / 'imagenet')} {number // 4}" for number, file in enumerate(files)]
        (tmp_path / "imagenet" / f"{split}_list.txt").write_text("\n".join(lines))
    return tmp_path


def shell(command: str, folder) -> str:
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"  # noqa: PTH120 (not resolved: a venv)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}"
    return result.stdout


@pytest.mark.slow
def test_the_commands_of_the_readme_work_in_their_order(checkout):
    outputs = []
    for command in commands(ROOT / "README.md"):
        if not any(part in command for part in NOT_RUN):
            extra = [flags for part, flags in EXTRA.items() if part in command]
            outputs.append(shell(" ".join([command.removeprefix(".venv/bin/").partition(" #")[0], *extra]), checkout))
    (digits,) = [output for output in outputs if "(mnist5k)" in output]
    assert float(re.findall(r"val +loss +\S+ +top-1 +([\d.]+)", digits)[-1]) >= 96.0  # see docs/results.md
    shell("python tools/export.py -pretrained mnist5k", checkout)
    classify, _, _, by_paddle, by_openvino = blocks(ROOT / "docs" / "deployment.md", "python")  # of the exported digits
    by_openvino = by_openvino.replace("model.xml", "model.onnx")  # OpenVINO reads both; the README exports this one
    code = f"{classify}{by_paddle}print(logits.argmax())\n{by_openvino}print(logits.argmax())"
    printed = subprocess.run([sys.executable, "-c", code], cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    assert re.fullmatch(r"7 89\.\d%\n(.*\n)*7\n7\n", printed.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("toolkit", "data"), [("paddleseg", "he_masks"), ("paddledetection", "nuclei_detection")])
def test_the_examples_for_own_data_in_the_toolkits_work(checkout, toolkit, data):
    document, folder = ROOT / "docs" / f"{toolkit}.md", checkout / "own"
    shell(f"python -m common.demo_data {data}", checkout)
    shutil.copytree(checkout / "data" / data, folder / "data")
    configurations = r"\*\*`(\w+\.yml)`\*\*.*?```yaml\n(.*?)```"
    for name, text in re.findall(configurations, document.read_text(encoding="utf-8"), re.DOTALL):
        (folder / name).write_text(text)
    for language, name in (("yml", "own.yml"), ("py", "own.py")):
        (text,) = blocks(document, language)
        (folder / name).write_text(text)
    shell("python own.py", folder)
    for command in commands(document):
        if command.startswith(("echo", "python tools/export.py", "paddle2onnx")):
            shell(command.replace("tools/", "../tools/"), folder)
    assert (folder / "exported" / "model.xml").exists()
    if toolkit == "paddleseg":
        open_onnx(folder / "model.onnx")  # refuses operators of a wrong version


@pytest.mark.slow
def test_the_tutorial_runs_and_shows_what_is_stored_in_it(checkout):
    """Accuracies may differ in the last digits from machine to machine."""
    file = checkout / "docs" / "tutorial.ipynb"
    stored, notebook = nbformat.read(file, 4), nbformat.read(file, 4)
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(file.parent)}}).execute()
    for cell, old in zip(notebook.cells, stored.cells, strict=True):
        kinds, old_kinds = ([output.output_type for output in c.get("outputs", [])] for c in (cell, old))
        assert [kind for kind in kinds if kind != "stream"] == [kind for kind in old_kinds if kind != "stream"]
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert float(re.search(r"best: +top-1 ([\d.]+)", printed)[1]) >= 85
    assert not re.search(r"^ *(/home|/root|/tmp|Traceback)", json.dumps(stored), re.MULTILINE)


def test_every_promise_names_an_existing_test():
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    promises = re.findall(r"`(tests/\S+\.py)::(\w+)`", text)
    assert len(promises) > 30
    missing = [name for file, name in promises if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert not missing

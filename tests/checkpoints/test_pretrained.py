"""load_pretrained with the checkpoints that exist in the world, and what it costs."""

from __future__ import annotations

import pickle
import statistics
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest

from common.checkpoints.file_format import load_file, save_file
from common.checkpoints.loading import load_pretrained, numpy_state
from common.demo_data.wheels import fetch
from common.errors import UserError
from common.pale_transformer import PaleTransformer, create_model
from tests.helpers.programs import ROOT


def make_model(seed: int, num_classes: int = 3) -> PaleTransformer:
    paddle.seed(seed)
    return PaleTransformer(4, (1, 1, 1, 1), (2, 2, 2, 2), 2, num_classes=num_classes)


def assert_equal(model, expected: dict, prefix: str = "") -> None:
    for name, array in numpy_state(model).items():
        if name.startswith(prefix):
            np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("form", ["bare", "model", "safetensors", "paddle", "nested paddle"])
def test_every_form_loads(tmp_path, form, capsys):
    source, model = make_model(1), make_model(2)
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pdparams")
    if form == "paddle":
        paddle.save(source.state_dict(), str(path))
    elif form == "nested paddle":
        paddle.save({"model": source.state_dict(), "epoch": 3}, str(path))
    else:
        save_file({"model": numpy_state(source)} if form == "model" else numpy_state(source), path)
    report = load_pretrained(model, path)
    assert_equal(model, numpy_state(source))
    assert len(report.loaded) == len(model.state_dict())
    assert f"{len(report.loaded)} loaded, 0 missing, 0 unexpected, 0 of another shape" in capsys.readouterr().out


def test_the_averaged_weights_of_a_checkpoint_are_loaded_when_asked_for(tmp_path):
    plain, average, model = make_model(1), make_model(2), make_model(3)
    save_file({"model": numpy_state(plain), "model_ema": numpy_state(average)}, tmp_path / "state.pdparams")
    load_pretrained(model, tmp_path / "state", ema=True)
    assert_equal(model, numpy_state(average))
    load_pretrained(model, tmp_path / "state")
    assert_equal(model, numpy_state(plain))
    save_file(numpy_state(plain), tmp_path / "bare.pdparams")
    with pytest.raises(UserError, match="no model_ema"):
        load_pretrained(model, tmp_path / "bare", ema=True)


def test_the_backbone_of_a_segmentation_or_detection_model_is_taken(tmp_path):
    source, model = make_model(1, num_classes=0), make_model(2)
    weights = {f"backbone.{name}": array for name, array in numpy_state(source).items() if not name.startswith("norm.")}
    weights["decode_head.conv.weight"] = np.zeros((2, 2, 3, 3), np.float32)
    save_file(weights, tmp_path / "upernet.pdparams")
    report = load_pretrained(model, tmp_path / "upernet")
    assert_equal(model, numpy_state(source), prefix="stages.")
    assert report.new_head
    assert sorted(report.missing) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]


def test_without_strictness_what_fits_is_loaded_and_the_rest_is_named(tmp_path, capsys):
    source, model = make_model(1), make_model(2)
    weights, before = numpy_state(source), numpy_state(model)
    weights["extra"] = np.zeros(3, np.float32)
    weights["norm.weight"] = np.zeros(5, np.float32)
    save_file(weights, tmp_path / "odd.pdparams")
    with pytest.raises(UserError, match=r"norm\.weight"):
        load_pretrained(model, tmp_path / "odd")
    assert_equal(model, before)
    load_pretrained(model, tmp_path / "odd", strict=False)
    assert_equal(model, numpy_state(source), prefix="stages.")
    np.testing.assert_array_equal(model.norm.weight.numpy(), before["norm.weight"])
    output = capsys.readouterr().out
    assert "unexpected: extra" in output
    assert "other shape: norm.weight (5,) for (32,)" in output


def test_a_file_that_wants_to_run_something_is_refused_with_its_name(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'canary')!r}, 'w')",))

    (tmp_path / "nice.pdparams").write_bytes(pickle.dumps({"head.weight": Hostile()}))
    with pytest.raises(UserError, match=r"refused to load .*nice\.pdparams: it wants to use 'builtins\.exec'"):
        load_pretrained(make_model(1), tmp_path / "nice")
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_real_files_of_other_projects_load_and_equal_what_paddle_reads():
    files = sorted(fetch("lpips_weights").rglob("*.pdparams"))
    assert len(files) == 6
    for file in files:
        ours, theirs = load_file(file), paddle.load(str(file), return_numpy=True)
        theirs.pop("StructuredToParameterName@@", None)
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array, err_msg=f"{file.name} {name}")


@pytest.mark.alone
@pytest.mark.slow
def test_a_file_above_four_gibibytes_loads(tmp_path):
    paddle.save({"big": np.full(4 * 2**30 + 8, 7, np.uint8), "end": np.arange(3)}, str(tmp_path / "big.pdparams"))
    state = load_file(tmp_path / "big.pdparams")
    assert state["big"].size == 4 * 2**30 + 8
    assert state["big"][-1] == 7
    np.testing.assert_array_equal(state["end"], [0, 1, 2])


@pytest.mark.alone
@pytest.mark.slow
def test_loading_pale_base_is_about_as_quick_as_paddle_and_needs_the_files_size(tmp_path):
    path = tmp_path / "pale_base.pdparams"
    model = create_model("pale_base")
    paddle.save(model.state_dict(), str(path))
    ours, theirs = [], []
    for _ in range(7):
        for times, load in ((theirs, lambda: paddle.load(str(path))), (ours, lambda: load_pretrained(model, path))):
            began = time.perf_counter()
            load()
            times.append(time.perf_counter() - began)
    ratio = statistics.median(ours) / statistics.median(theirs)
    program = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from common.checkpoints.loading import load_pretrained\n"
        "from common.pale_transformer import create_model\n"
        "def memory(kind):\n"
        "    return 1024 * int(re.search(kind + r':\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "model = create_model('pale_base')\n"
        "before = memory('VmRSS')\n"
        "Path('/proc/self/clear_refs').write_text('5')\n"  # sets the peak back to the present
        "load_pretrained(model, sys.argv[1], verbose=False)\n"
        "print(memory('VmHWM') - before)\n"
    )
    output = subprocess.check_output([sys.executable, "-c", program, str(path)], cwd=ROOT)
    extra = int(output.split()[-1]) / path.stat().st_size
    print(f"\nloading Pale-B: {ratio:.2f} times paddle.load, extra memory {extra:.2f} times the file")
    assert ratio <= 1.5
    assert extra <= 1.1

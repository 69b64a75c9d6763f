"""Weights out of files of every kind and version, into models that they fit."""

import pickle
import subprocess
import sys

import numpy as np
import paddle
import pytest
from paddle import nn

from common.checkpoints import renames
from common.checkpoints.file_format import load_file, save_file
from common.checkpoints.loading import (
    Checkpoint,
    attention_of,
    build_lazily,
    deployed_state,
    load_pretrained,
    load_weights,
    numpy_state,
    read_checkpoint,
    read_state,
)
from common.demo_data.wheels import fetch
from common.errors import UserError
from common.pale_transformer import VARIANTS, PaleTransformer, create_model
from tests.helpers.programs import ROOT


def make_model(num_classes=3, seed=0, depths=(1, 1, 1, 1), embed_dim=4, pale_size=2, **settings):
    paddle.seed(seed)
    return PaleTransformer(embed_dim, depths, (2, 2, 2, 2), pale_size, num_classes=num_classes, **settings)


def checkpoint_of(model, **fields):
    return Checkpoint("some/file.pdparams", numpy_state(model), **fields)


def assert_one_line(error, parts):
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


def assert_equal(model, expected, prefix=""):
    for name, array in numpy_state(model).items():
        if name.startswith(prefix):
            np.testing.assert_array_equal(array, expected[name], err_msg=name)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- reading


@pytest.mark.parametrize("form", ["bare", "model", "safetensors", "paddle", "nested paddle"])
def test_every_form_of_file_loads(tmp_path, form, capsys):
    source, model = make_model(seed=1), make_model(seed=2)
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pdparams")
    if form == "paddle":
        paddle.save(source.state_dict(), str(path))
    elif form == "nested paddle":
        paddle.save({"model": source.state_dict(), "epoch": 3}, str(path))
    else:
        save_file({"model": numpy_state(source)} if form == "model" else numpy_state(source), path)
    report = load_pretrained(model, path.with_suffix(""))
    assert_equal(model, numpy_state(source))
    assert len(report.loaded) == len(model.state_dict())
    assert f"{len(report.loaded)} loaded, 0 missing, 0 unexpected, 0 of another shape" in capsys.readouterr().out


def test_averaged_weights_are_loaded_on_request(tmp_path):
    plain, average, model = make_model(seed=1), make_model(seed=2), make_model(seed=3)
    save_file({"model": numpy_state(plain), "model_ema": numpy_state(average)}, tmp_path / "state.pdparams")
    load_pretrained(model, tmp_path / "state", ema=True)
    assert_equal(model, numpy_state(average))
    load_pretrained(model, tmp_path / "state")
    assert_equal(model, numpy_state(plain))
    save_file(numpy_state(plain), tmp_path / "bare.pdparams")
    with pytest.raises(UserError, match="no model_ema"):
        load_pretrained(model, tmp_path / "bare", ema=True)


def test_a_checkpoint_describes_its_weights(tmp_path):
    described = {
        "task": "image_classification",
        "config": "SEED: 0\n",
        "class_names": ["a", "b"],
        "figures": {"top1": 1},
    }
    save_file({"model": {"head.weight": np.zeros((3, 2), np.float32)}, **described}, tmp_path / "best.pdparams")
    checkpoint = read_checkpoint(tmp_path / "best")
    assert {name: getattr(checkpoint, name) for name in described} == described
    assert checkpoint.num_classes == 2
    assert checkpoint.path == tmp_path / "best.pdparams"
    assert checkpoint.source == str(tmp_path / "best")


@pytest.mark.parametrize(
    ("state", "part"),
    [
        ({"model": [1]}, "model is a list"),
        ({"epoch": 3}, "holds no weights"),
        ({"model": {"a\x1b[2J": np.zeros(3)}}, "unprintable"),
        ({"model": {"a": np.zeros(3)}, "class_names": "roses"}, "class_names is a str, not a list"),
        ({"model": {"a": np.zeros(3)}, "task": 5}, "task is a int, not a str"),
    ],
)
def test_a_state_that_is_no_checkpoint_is_refused(state, part):
    with pytest.raises(UserError) as caught:
        Checkpoint.from_state(state, "some/file")
    assert_one_line(caught.value, ["some/file", part])


def test_a_file_with_code_is_refused_by_name(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'canary')!r}, 'w')",))

    (tmp_path / "nice.pdparams").write_bytes(pickle.dumps({"head.weight": Hostile()}))
    with pytest.raises(UserError, match=r"refused to load .*nice\.pdparams: it wants to use 'builtins\.exec'"):
        load_pretrained(make_model(), tmp_path / "nice")
    assert not (tmp_path / "canary").exists()


def test_old_names_are_renamed_in_weights_and_in_the_optimizers_state(tmp_path, monkeypatch):
    monkeypatch.setattr(renames, "_RENAMES", ((r"\.fc1\.", ".expand."), (r"^classifier\.", "head.")))
    old, new = {"mlp.fc1.bias": np.zeros(2), "classifier.bias": np.ones(3)}, ["mlp.expand.bias", "head.bias"]
    state = {"model": old, "model_ema": old, "optimizer": {f"{name}/moment1": old[name] for name in old}, "step": 1}
    save_file(state, tmp_path / "state.pdparams")
    save_file(old, tmp_path / "bare.pdparams")
    state = read_state(tmp_path / "state")
    assert list(state["model"]) == list(state["model_ema"]) == list(read_state(tmp_path / "bare")) == new
    assert list(state["optimizer"]) == [f"{name}/moment1" for name in new]
    assert state["step"] == 1


@pytest.mark.slow
def test_files_of_another_project_equal_what_paddle_reads():
    paths = sorted(fetch("lpips_weights").rglob("*.pdparams"))
    assert len(paths) == 6
    for path in paths:
        ours, theirs = load_file(path), paddle.load(str(path), return_numpy=True)
        theirs.pop("StructuredToParameterName@@", None)
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array, err_msg=f"{path.name} {name}")


# ---- weights that fit


def test_numpy_state_is_a_copy_under_structured_names():
    model = make_model()
    state = numpy_state(model)
    assert state.keys() == model.state_dict().keys()
    before = state["head.bias"].copy()
    model.head.bias.set_value(before + 1)
    np.testing.assert_array_equal(state["head.bias"], before)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_all_weights_are_copied_and_converted(dtype):
    source, model = make_model(seed=1), make_model(seed=2)
    weights = {name: array.astype(dtype) for name, array in numpy_state(source).items()}
    report = load_weights(model, Checkpoint("file", weights))
    assert sorted(report.loaded) == sorted(source.state_dict())
    assert not report.wrong
    assert not report.new_head
    for name, array in numpy_state(model).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, weights[name].astype(np.float32), err_msg=name)


@pytest.mark.parametrize("position_encoding", ["absolute", "relative"])
def test_learned_positions_of_another_image_size_are_interpolated(position_encoding):
    source = make_model(seed=1, position_encoding=position_encoding, image_size=32)
    model = make_model(seed=2, position_encoding=position_encoding, image_size=(64, 96))
    report = load_weights(model, checkpoint_of(source))
    assert len(report.loaded) == len(model.state_dict())
    assert report.interpolated
    assert f"interpolated: {report.interpolated[0]}" in str(report)
    source.eval()
    model.eval()
    images = paddle.rand([1, 3, 64, 96])
    np.testing.assert_allclose(model(images).numpy(), source(images).numpy(), rtol=1e-4, atol=1e-5)


def test_the_backbone_of_a_segmentation_or_detection_model_is_taken():
    source, model = make_model(num_classes=0, seed=1), make_model(seed=2)
    weights = {f"backbone.{name}": array for name, array in numpy_state(source).items() if not name.startswith("norm.")}
    weights["decode_head.conv.weight"] = np.zeros((2, 2, 3, 3), np.float32)
    report = load_weights(model, Checkpoint("upernet", weights), fine_tune=True)
    assert_equal(model, numpy_state(source), prefix="stages.")
    assert report.new_head
    assert sorted(report.missing) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]


def test_an_auxiliary_head_of_another_model_is_kept_and_loaded():
    """PaddleSeg's DDRNet uses one; only parts that a model declares as such are left out."""
    model, again = (nn.Sequential(("head", nn.Linear(2, 3)), ("aux_head", nn.Linear(2, 3))) for _ in range(2))
    report = load_weights(again, Checkpoint("best", deployed_state(model)))
    assert not report.left_out
    assert_equal(again, numpy_state(model))


# ---- weights that do not fit


def wrong_shape(weights):
    weights["stages.3.blocks.0.mlp.fc2.weight"] = weights["stages.3.blocks.0.mlp.fc2.weight"].T
    return ["stages.3.blocks.0.mlp.fc2.weight (32, 128) for (128, 32)", "1 of another shape"]


def integers(weights):
    weights["norm.weight"] = weights["norm.weight"].astype(np.int64)
    return ["norm.weight of int64", "1 of another shape"]


def missing(weights):
    del weights["norm.weight"]
    return ["norm.weight", "1 missing"]


def unexpected(weights):
    weights["extra.weight"] = np.zeros(3, np.float32)
    return ["extra.weight", "1 unexpected"]


@pytest.mark.parametrize("damage", [wrong_shape, integers, missing, unexpected])
def test_weights_that_do_not_fit_change_nothing(damage):
    weights, model = numpy_state(make_model(seed=1)), make_model(seed=2)
    parts, before = damage(weights), numpy_state(model)
    with pytest.raises(UserError) as caught:
        load_weights(model, Checkpoint("some/file.pdparams", weights), fine_tune=True)
    assert_one_line(caught.value, ["some/file.pdparams", *parts])
    assert_equal(model, before)


def test_without_strict_the_fitting_weights_are_loaded_and_the_others_named():
    source, model = make_model(seed=1), make_model(seed=2)
    weights, before = numpy_state(source), numpy_state(model)
    weights["extra"] = np.zeros(3, np.float32)
    weights["norm.weight"] = np.zeros(5, np.float32)
    report = load_pretrained(model, Checkpoint("odd", weights), strict=False, verbose=False)
    assert_equal(model, numpy_state(source), prefix="stages.")
    np.testing.assert_array_equal(model.norm.weight.numpy(), before["norm.weight"])
    assert "unexpected: extra" in str(report)
    assert "other shape: norm.weight (5,) for (32,)" in str(report)


def skeleton(embed_dim, depths):
    """Enough of a model's weights to recognize the variant."""
    blocks = [
        f"stages.{stage}.blocks.{block}.norm1.weight" for stage, depth in enumerate(depths) for block in range(depth)
    ]
    return {name: np.zeros(embed_dim, np.float32) for name in ["stages.0.merging.conv.bias", *blocks]}


def doubled_tables():
    weights = numpy_state(make_model(position_encoding="relative", image_size=32))
    name = next(name for name in weights if name.endswith(".table"))
    return weights | {name: np.concatenate([weights[name]] * 2)}


RELATIVE = {"position_encoding": "relative", "image_size": 32}


@pytest.mark.parametrize(
    ("weights", "settings", "parts"),
    [
        (
            lambda: skeleton(VARIANTS["pale_small"]["embed_dim"], VARIANTS["pale_small"]["depths"]),
            {},
            ["these are pale_small weights", "MODEL.NAME"],
        ),
        (lambda: numpy_state(make_model(depths=(1, 2, 3, 1))), {}, ["depths (1, 2, 3, 1) and 4 channels"]),
        (lambda: {"conv1.weight": np.zeros((3, 3), np.float32)}, {}, ["not the weights of a Pale Transformer"]),
        (
            lambda: numpy_state(make_model()),
            RELATIVE,
            ["position encoding is cpe", "relative", "MODEL.POSITION_ENCODING"],
        ),
        (doubled_tables, RELATIVE, ["relative positions are of another attention", "MODEL.ATTENTION"]),
        (lambda: numpy_state(make_model()), {"stage_norms": False}, ["norms in its stages", "stage_norms"]),
    ],
    ids=["variant", "own variant", "another model", "position encoding", "relative positions", "stage norms"],
)
def test_the_likely_cause_is_named(weights, settings, parts):
    with pytest.raises(UserError) as caught:
        load_weights(make_model(**settings), Checkpoint("file", weights()), fine_tune=True)
    assert_one_line(caught.value, parts)


PALE = {"attention": "pale", "pale_size": [2, 2, 2, 2], "parallel": True}


@pytest.mark.parametrize(
    ("record", "settings", "parts"),
    [
        ({"attention": PALE}, {"pale_size": (2, 2)}, []),
        ({}, {"attention": "window"}, []),  # weights of others, which do not name their attention
        ({"config": "of 0.1"}, {"attention": "window"}, ["attention=pale, not window"]),
        ({"attention": PALE}, {"pale_size": 3}, ["pale_size=[2, 2, 2, 2], not [3, 3, 3, 3]"]),
        (
            {"attention": PALE},
            {"attention": "axial", "parallel": False},
            ["pale, not axial", "parallel=True, not False"],
        ),
    ],
)
def test_another_attention_is_refused_for_evaluation_and_noted_for_training(record, settings, parts):
    model = make_model(**settings)
    checkpoint = Checkpoint.from_state({"model": numpy_state(model), **record}, "file")
    report = load_weights(model, checkpoint, fine_tune=True)
    assert bool(report.note) == bool(parts)
    assert all(part in str(report) for part in parts)
    if parts:
        with pytest.raises(UserError) as caught:
            load_weights(model, checkpoint)
        assert_one_line(caught.value, ["file", "MODEL.ATTENTION", *parts])
    else:
        load_weights(model, checkpoint)


def test_a_model_around_a_backbone_has_the_attention_of_the_backbone():
    whole = nn.Sequential()
    whole.backbone = make_model(attention="cross", parallel=False)
    assert attention_of(whole) == {"attention": "cross", "pale_size": [2, 2, 2, 2], "parallel": False}
    assert attention_of(nn.Linear(2, 3)) == {}


def test_another_task_and_another_order_of_classes_are_refused_for_evaluation():
    model = make_model()
    checkpoint = checkpoint_of(model, task="image_classification", class_names=["cat", "dog", "eel"])
    for task, names in ((None, None), ("image_classification", ["cat", "dog", "eel"])):
        load_weights(model, checkpoint, task=task, class_names=names)
    with pytest.raises(UserError, match="'image_classification', not for object_detection"):
        load_weights(model, checkpoint, task="object_detection")
    with pytest.raises(UserError, match="class 0 is 'dog' in the validation data and 'cat'"):
        load_weights(model, checkpoint, class_names=["dog", "cat", "eel"])
    load_weights(model, checkpoint, fine_tune=True, task="object_detection", class_names=["dog", "cat", "eel"])


# ---- heads


@pytest.mark.parametrize(("file_classes", "own_classes"), [(7, 3), (0, 3), (7, 0)])
def test_fine_tuning_keeps_a_new_head(file_classes, own_classes):
    source, model = make_model(file_classes, seed=1), make_model(own_classes, seed=2)
    own_head = {name: array for name, array in numpy_state(model).items() if name.startswith("head.")}
    report = load_weights(model, checkpoint_of(source), fine_tune=True)
    assert report.new_head == bool(own_classes)
    assert ("new head" in str(report)) == bool(own_classes)
    assert_equal(model, numpy_state(source) | own_head)
    problem = "its head has 7 classes, the model 3" if file_classes and own_classes else "another number of classes"
    with pytest.raises(UserError, match=problem):
        load_weights(model, checkpoint_of(source))


def test_half_a_head_is_left_out_as_a_whole():
    source, model = make_model(seed=1), make_model(seed=2)
    weights, own = numpy_state(source), numpy_state(model)
    del weights["head.bias"]
    assert load_weights(model, Checkpoint("file", weights), fine_tune=True).new_head
    np.testing.assert_array_equal(model.head.weight.numpy(), own["head.weight"])


# ---- models without initial values


@pytest.fixture
def drawn(monkeypatch):
    """The shapes that are filled with random numbers."""
    shapes = []
    for name in ("TruncatedNormal", "Normal", "XavierNormal", "XavierUniform", "KaimingNormal", "KaimingUniform"):
        kind = getattr(nn.initializer, name)

        def forward(self, parameter, block=None, original=kind.forward):
            shapes.append(tuple(parameter.shape))
            return original(self, parameter, block)

        monkeypatch.setattr(kind, "forward", forward)
    return shapes


def test_a_pretrained_model_draws_no_random_numbers_except_for_a_new_head(drawn):
    model = create_model("pale_nano", pretrained="mnist5k")
    assert not drawn
    assert all(np.isfinite(array).all() for array in numpy_state(model).values())
    weight = create_model("pale_nano", num_classes=300, pretrained="mnist5k").head.weight.numpy()
    assert set(drawn) == {(160, 300)}
    assert weight.std() == pytest.approx(0.02 if paddle.__version__ >= "3" else 0.0176, rel=0.05)  # 2.6 cuts the tails


def test_missing_weights_are_initialized_and_can_be_trained():
    weights = {name: array for name, array in numpy_state(make_model()).items() if ".attention." not in name}
    model = build_lazily(make_model)
    assert load_weights(model, Checkpoint("a file", weights), strict=False).missing
    for name, array in numpy_state(model).items():
        if name in weights:
            np.testing.assert_array_equal(array, weights[name], err_msg=name)
        elif not name.endswith((".bias", ".norm.weight", "._mean", "._variance")):
            assert 0.001 < array.std() < 0.04, name
    model(paddle.ones([1, 3, 32, 32])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if not parameter.stop_gradient)


class Reading(nn.Layer):
    """Reads a parameter while it is built, as some models of the toolkits do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.total = float(self.linear.weight.sum())


def test_a_model_that_reads_its_parameters_is_built_with_initial_values(drawn):
    assert np.isfinite(build_lazily(Reading).total)
    assert drawn == [(2, 3)]
    with pytest.raises(ValueError, match="num_classes is -1"):
        build_lazily(lambda: make_model(-1))
    assert nn.Linear(2, 3).weight.numpy().shape == (2, 3)  # the guard is off again


@pytest.mark.slow
def test_loading_takes_no_more_memory_than_the_file_has_bytes(tmp_path):
    path = tmp_path / "pale_base.pdparams"
    paddle.save(create_model("pale_base").state_dict(), str(path))
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
    assert int(output.split()[-1]) <= 1.1 * path.stat().st_size

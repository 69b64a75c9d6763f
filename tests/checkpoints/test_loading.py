"""Weights out of files of every kind and version, into models that they fit."""

import hashlib
import pickle

import numpy as np
import paddle
import pytest
from paddle import nn

from common.checkpoints import loading
from common.checkpoints.file_format import save_file
from common.checkpoints.loading import (
    Checkpoint,
    attention_of,
    deployed_state,
    load_pretrained,
    load_weights,
    numpy_state,
    read_checkpoint,
)
from common.errors import UserError
from common.pale_transformer import PaleTransformer


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


# ---- reading


@pytest.mark.parametrize("form", ["model", "safetensors", "paddle"])
def test_every_form_of_file_loads(tmp_path, form, capsys):
    source, model = make_model(seed=1), make_model(seed=2)
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pdparams")
    if form == "paddle":
        paddle.save(source.state_dict(), str(path))
    else:
        save_file({"model": numpy_state(source)} if form == "model" else numpy_state(source), path)
    report = load_pretrained(model, path.with_suffix(""))
    assert_equal(model, numpy_state(source))
    assert len(report.loaded) == len(model.state_dict())
    assert f"{len(report.loaded)} loaded, 0 missing, 0 unexpected, 0 of another shape" in capsys.readouterr().out


def test_averaged_weights_are_loaded_unless_the_others_are_chosen(tmp_path, capsys):
    plain, average, model = make_model(seed=1), make_model(seed=2), make_model(seed=3)
    save_file({"model": numpy_state(plain), "model_ema": numpy_state(average)}, tmp_path / "state.pdparams")
    load_pretrained(model, tmp_path / "state")
    assert_equal(model, numpy_state(average))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/state: the averaged weights are taken (model_ema); -weights model")
    for ema, expected in ((False, plain), (True, average)):
        load_pretrained(model, tmp_path / "state", ema=ema)
        assert_equal(model, numpy_state(expected))
    save_file({"model_ema": numpy_state(average)}, tmp_path / "alone.pdparams")
    load_pretrained(model, tmp_path / "alone")
    assert_equal(model, numpy_state(average))
    save_file({"model": numpy_state(plain)}, tmp_path / "without.pdparams")
    load_pretrained(model, tmp_path / "without")
    assert_equal(model, numpy_state(plain))
    assert not capsys.readouterr().err
    load_pretrained(model, tmp_path / "without", ema=False)
    assert "without has one set of weights, perhaps averaged; -weights" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no averaged weights \(model_ema\); choose model"):
        load_pretrained(model, tmp_path / "without", ema=True)


def test_weights_and_their_hash_are_of_one_file_while_a_run_replaces_it(tmp_path, monkeypatch):
    path, read = tmp_path / "best.pdparams", loading.read_state
    save_file(numpy_state(make_model(seed=1)), path)

    def read_and_replace(source):
        state = read(source)
        if not replaced:
            save_file(numpy_state(make_model(seed=2)), path)
            replaced.append(True)
        return state

    replaced = []
    monkeypatch.setattr(loading, "read_state", read_and_replace)
    checkpoint = loading.read_checkpoint(path)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for name, array in numpy_state(make_model(seed=2)).items():
        np.testing.assert_array_equal(checkpoint.weights[name], array)


def test_the_names_of_other_training_programs_are_known(tmp_path):
    plain, average, model = make_model(seed=1), make_model(seed=2), make_model(seed=3)
    state = {"epoch": 3, "state_dict": numpy_state(plain), "optimizer": {}}
    save_file(state, tmp_path / "a.pdparams")
    load_pretrained(model, tmp_path / "a")
    assert_equal(model, numpy_state(plain))
    for name in ("state_dict_ema", "ema"):
        save_file({**state, "model": "pale", name: numpy_state(average)}, tmp_path / "b.pdparams")
        load_pretrained(model, tmp_path / "b")
        assert_equal(model, numpy_state(average))
        load_pretrained(model, tmp_path / "b", ema=False)
        assert_equal(model, numpy_state(plain))


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
        ({"epoch": 3, "net": {}}, "contains no weights, but 'epoch', 'net'"),
        ({"model": {"a": np.zeros(3)}, "model_ema": {}}, "contains no weights in model_ema, but nothing; choose"),
        ({"model": {"a\x1b[2J": np.zeros(3)}}, "unprintable"),
        ({"model": {"a": np.zeros(3)}, "class_names": "roses"}, "class_names is 'roses'; it must be a list"),
    ],
)
def test_a_state_that_is_no_checkpoint_is_refused(state, part):
    with pytest.raises(UserError) as caught:
        Checkpoint.from_state(state, "some/file")
    assert_one_line(caught.value, ["some/file", part])


def test_class_names_are_made_printable():
    state = {"model": {"a": np.zeros(3)}, "class_names": ["two  blanks", "\x1b[2J"]}
    assert Checkpoint.from_state(state, "some/file").class_names == ["two  blanks", r"\x1b[2J"]


def test_a_file_with_code_is_refused_by_name(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'canary')!r}, 'w')",))

    (tmp_path / "nice.pdparams").write_bytes(pickle.dumps({"head.weight": Hostile()}))
    with pytest.raises(UserError, match=r"refused to load .*nice\.pdparams: it refers to 'builtins\.exec'"):
        load_pretrained(make_model(), tmp_path / "nice")
    assert not (tmp_path / "canary").exists()


# ---- weights that fit


def test_weights_of_another_precision_are_converted():
    model = make_model(seed=2)
    weights = {name: array.astype(np.float16) for name, array in numpy_state(make_model(seed=1)).items()}
    assert not load_weights(model, Checkpoint("file", weights)).wrong
    for name, array in numpy_state(model).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, weights[name].astype(np.float32), err_msg=name)


def test_a_model_in_bfloat16_takes_float32_weights():
    source, model = make_model(seed=1), make_model(seed=2).bfloat16()
    load_pretrained(model, Checkpoint("file", numpy_state(source)))
    expected = source.norm.weight.astype("bfloat16").astype("float32").numpy()
    np.testing.assert_array_equal(model.norm.weight.astype("float32").numpy(), expected)


def test_bfloat16_weights_of_paddle_are_converted(tmp_path):
    model, again = make_model(seed=1), make_model(seed=2)
    weights = {name: tensor.astype("bfloat16") for name, tensor in model.state_dict().items()}
    paddle.save(weights, str(tmp_path / "half.pdparams"))
    load_pretrained(again, tmp_path / "half.pdparams")
    assert_equal(again, {name: tensor.astype("float32").numpy() for name, tensor in weights.items()})


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


def test_learned_positions_without_values_are_named():
    checkpoint = checkpoint_of(make_model(position_encoding="absolute", image_size=32))
    name = "stages.0.blocks.0.position_encoding.table"
    checkpoint.weights[name] = checkpoint.weights[name][:, :0]
    with pytest.raises(UserError, match=name):
        load_weights(make_model(position_encoding="absolute", image_size=32), checkpoint)


def test_an_auxiliary_head_of_another_model_is_kept_and_loaded():
    """PaddleSeg's DDRNet uses one; only parts that a model declares as such are left out."""
    model, again = (nn.Sequential(("head", nn.Linear(2, 3)), ("aux_head", nn.Linear(2, 3))) for _ in range(2))
    report = load_weights(again, Checkpoint("best", deployed_state(model)))
    assert not report.left_out
    assert_equal(again, numpy_state(model))


# ---- weights that do not fit


FC2 = "stages.3.blocks.0.mlp.fc2.weight"
VARIANCE = "stages.0.blocks.0.attention.qkv.norm._variance"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda weights: {FC2: weights[FC2].T}, [f"{FC2} (32, 128) for (128, 32)", "1 of another shape"]),
        (lambda weights: {"norm.weight": weights["norm.weight"].astype(int)}, ["norm.weight of int64"]),
        (lambda weights: {"norm.weight": None}, ["norm.weight", "1 missing"]),
        (lambda weights: {"extra.weight": np.zeros(3, np.float32)}, ["extra.weight", "1 unexpected"]),
        (
            lambda weights: {FC2: np.where(weights[FC2] == weights[FC2].max(), np.nan, weights[FC2])},
            [f"NaN or infinity in {FC2}"],
        ),
        (lambda weights: {VARIANCE: -weights[VARIANCE]}, [f"a negative variance in {VARIANCE}"]),
    ],
    ids=["shape", "integers", "missing", "unexpected", "NaN", "negative variance"],
)
def test_weights_that_do_not_fit_change_nothing(change, parts):
    weights, model = numpy_state(make_model(seed=1)), make_model(seed=2)
    weights = {name: array for name, array in (weights | change(weights)).items() if array is not None}
    before = numpy_state(model)
    with pytest.raises(UserError) as caught:
        load_weights(model, Checkpoint("some/file.pdparams", weights), fine_tune=True)
    assert_one_line(caught.value, ["some/file.pdparams", *parts])
    assert_equal(model, before)


def test_without_strict_the_fitting_weights_are_loaded_and_the_others_named():
    source, model = make_model(seed=1), make_model(seed=2)
    weights, before = numpy_state(source), numpy_state(model)
    weights["extra"] = np.zeros(3, np.float32)
    weights["norm.weight"] = np.zeros(5, np.float32)
    report = load_pretrained(model, Checkpoint("odd", weights), strict=False)
    assert_equal(model, numpy_state(source), prefix="stages.")
    np.testing.assert_array_equal(model.norm.weight.numpy(), before["norm.weight"])
    assert "unexpected: extra" in str(report)
    assert "other shape: norm.weight (5,) for (32,)" in str(report)


@pytest.mark.parametrize(
    ("weights", "settings", "parts"),
    [
        (lambda: numpy_state(make_model(depths=(1, 2, 3, 1))), {}, ["depths (1, 2, 3, 1) and 4 channels"]),
        (lambda: numpy_state(make_model()), {"stage_norms": False}, ["the first difference is stages.0.merging.norm"]),
        (
            lambda: {"stages.0.bn.running_mean": np.zeros(4)},
            {},
            ["PyTorch's; rename running_mean to _mean"],
        ),
    ],
    ids=["own variant", "stage norms", "PyTorch"],
)
def test_the_likely_cause_is_named(weights, settings, parts):
    with pytest.raises(UserError) as caught:
        load_weights(make_model(**settings), Checkpoint("file", weights()), fine_tune=True)
    assert_one_line(caught.value, parts)


PALE = {"attention": "pale", "pale_size": [2, 2, 2, 2], "parallel": True}


@pytest.mark.parametrize(
    ("record", "settings", "parts"),
    [
        ({}, {"attention": "window"}, []),  # weights of others, which do not name their attention
        ({"config": "of: 0.1"}, {"attention": "window"}, ["attention=pale, not window"]),
        ({"config": "MODEL: {NAME: pale_nano}"}, {}, ["num_heads=[2, 2, 4, 8], not [2, 2, 2, 2]"]),
        (
            {"config": "MODEL: {PRETRAINED: x}\nmodel: {backbone: {pale_size: 3}}"},
            {},
            ["pale_size=[3, 3, 3, 3], not [2, 2, 2, 2]"],
        ),
        ({"config": "PaleTransformer: {num_heads: [x, {}], variant: []}"}, {}, []),
        ({"config": "MODEL: {NUM_HEADS: 1000000000, PALE_SIZE: {}}"}, {}, []),
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


def test_training_may_start_from_the_backbone_of_a_model_for_another_task():
    source, model = nn.Sequential(), nn.Sequential()
    source.backbone, model.backbone = make_model(seed=1), make_model(seed=2)
    source.neck, model.decoder = nn.Linear(2, 3), nn.Linear(3, 4)
    checkpoint = checkpoint_of(source, task="object_detection")
    report = load_weights(model, checkpoint, fine_tune=True, task="semantic_segmentation")
    assert not report.wrong
    assert_equal(model.backbone, numpy_state(source.backbone), prefix="stages.")
    with pytest.raises(UserError, match="'object_detection', not for semantic_segmentation"):
        load_weights(model, checkpoint, task="semantic_segmentation")


def test_a_model_around_a_backbone_has_the_attention_of_the_backbone():
    whole = nn.Sequential()
    whole.backbone = make_model(attention="cross", parallel=False)
    assert attention_of(whole) == whole.backbone.attention_settings
    assert attention_of(nn.Linear(2, 3)) == {}


def test_another_task_and_another_order_of_classes_are_refused_for_evaluation():
    model = make_model()
    checkpoint = checkpoint_of(model, task="image_classification", class_names=["cat", "dog", "eel"])
    for task, names in ((None, None), ("image_classification", ["cat", "dog", "eel"])):
        load_weights(model, checkpoint, task=task, class_names=names)
    with pytest.raises(UserError, match="'image_classification', not for object_detection"):
        load_weights(model, checkpoint, task="object_detection")
    with pytest.raises(UserError, match="class 0 is 'dog' in the data and 'cat'"):
        load_weights(model, checkpoint, class_names=["dog", "cat", "eel"])
    load_weights(model, checkpoint, fine_tune=True, task="object_detection", class_names=["dog", "cat", "eel"])


def test_classes_of_another_name_are_reported():
    model = make_model()
    state = {"model": numpy_state(model), "class_names": ["cat", "dog", "e\u0301el"]}
    checkpoint = Checkpoint.from_state(state, "file")
    report = load_weights(model, checkpoint, class_names=["cat", "wolf", "\xe9el"])
    assert report.renamed == ["class 1 is 'wolf' in the data and 'dog' in the weights"]
    assert "warning: class 1 is 'wolf'" in str(report)


def test_weights_of_another_whole_model_are_not_called_weights_of_a_backbone():
    model = nn.Sequential()
    model.backbone, model.neck = make_model(0), nn.Linear(2, 3)
    weights = {**numpy_state(model), "decode_head.weight": np.zeros(3, np.float32)}
    del weights["neck.weight"]
    with pytest.raises(UserError, match="its backbone fits, but the rest is of another model or task"):
        load_weights(model, Checkpoint("file", weights), fine_tune=True)


def test_a_folder_is_not_called_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for name in ("run", str(tmp_path / "run")):
        with pytest.raises(UserError, match=r"run is a folder; give a file in it, such as .*run/best\.pdparams"):
            read_checkpoint(name)


# ---- heads


@pytest.mark.parametrize(("file_classes", "own_classes"), [(7, 3), (7, 0)])
def test_fine_tuning_keeps_a_new_head(file_classes, own_classes):
    source, model = make_model(file_classes, seed=1), make_model(own_classes, seed=2)
    own_head = {name: array for name, array in numpy_state(model).items() if name.startswith("head.")}
    report = load_weights(model, checkpoint_of(source), fine_tune=True)
    assert report.new_parts == ["head"] * bool(own_classes)
    assert ("new head" in str(report)) == bool(own_classes)
    assert_equal(model, numpy_state(source) | own_head)
    with pytest.raises(UserError, match=r"its head differs, perhaps in the number of classes: head\."):
        load_weights(model, checkpoint_of(source))


@pytest.mark.parametrize(
    "state",
    [
        {"head.weight": np.zeros((0, 10**7), np.float32), "a": np.zeros(3)},
        {"model": {"a": np.zeros(3)}, "class_names": ["a"] * 70_000},
    ],
    ids=["head", "names"],
)
def test_more_classes_than_memory_could_hold_are_refused(state):
    with pytest.raises(UserError, match=r"some/file has .*000 classes; at most 65,536"):
        Checkpoint.from_state(state, "some/file")


def test_weights_that_overflow_in_the_precision_of_the_model_are_refused():
    checkpoint = checkpoint_of(make_model())
    checkpoint.weights["norm.weight"] = np.full_like(checkpoint.weights["norm.weight"], 1e300, "f8")
    with pytest.raises(UserError, match=r"NaN or infinity in norm\.weight"):
        load_weights(make_model(), checkpoint)


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
def test_a_long_file_that_is_no_weights_is_refused_before_all_of_it_is_read(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="refused to load"):
        read_checkpoint(path)

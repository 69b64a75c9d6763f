"""Files that are whole or absent, and weights that fit or are refused."""

import errno
import os
import pickle

import numpy as np
import paddle
import pytest
from paddle import nn

from common.checkpoints.file_format import load_file, save_file
from common.checkpoints.loading import (
    attention_of,
    deployed_state,
    find_weights,
    load_pretrained,
    load_weights,
    numpy_state,
    refuse_other_attention,
)
from common.errors import UserError
from common.pale_transformer import VARIANTS, PaleTransformer, create_model

STATE = {
    "model": {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.array([1, 2], np.int64)},
    "epoch": 3,
    "best": {"top1": 91.5},
    "config": "SEED: 0\n",
    "class_names": None,
}


def make_model(num_classes=3, seed=0, depths=(1, 1, 1, 1), embed_dim=4, pale_size=2, **settings):
    paddle.seed(seed)
    return PaleTransformer(embed_dim, depths, (2, 2, 2, 2), pale_size, num_classes=num_classes, **settings)


def assert_one_line(error, parts):
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- files


def assert_is_state(loaded):
    assert loaded.keys() == STATE.keys()
    for name, array in STATE["model"].items():
        value = np.asarray(loaded["model"][name])
        assert value.dtype == array.dtype
        np.testing.assert_array_equal(value, array)
    for name in set(STATE) - {"model"}:
        assert loaded[name] == STATE[name]


def test_file_is_read_by_load_file_and_by_paddle(tmp_path):
    save_file(STATE, tmp_path / "new" / "folder" / "state.pdparams")
    assert files(tmp_path / "new" / "folder") == ["state.pdparams"]
    assert_is_state(load_file(tmp_path / "new" / "folder" / "state.pdparams"))
    assert_is_state(paddle.load(str(tmp_path / "new" / "folder" / "state.pdparams")))


def test_weights_saved_by_paddle_are_read(tmp_path):
    model = make_model()
    paddle.save(model.state_dict(), str(tmp_path / "weights.pdparams"))
    for name, array in numpy_state(model).items():
        np.testing.assert_array_equal(load_file(tmp_path / "weights.pdparams")[name], array)


def test_suffix_and_home_may_be_left_to_load_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(STATE, tmp_path / "epoch_0.5.pdparams")
    (tmp_path / "epoch_0.5").mkdir()
    assert_is_state(load_file(tmp_path / "epoch_0.5"))
    assert_is_state(load_file(str(tmp_path / "epoch_0.5.pdparams")))
    assert_is_state(load_file("~/epoch_0.5"))


class FailsToPickle:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), TypeError("cannot pickle")])
@pytest.mark.parametrize("old", [True, False])
def test_interrupted_writing_leaves_the_old_file_and_nothing_else(tmp_path, error, old):
    path = tmp_path / "state.pdparams"
    if old:
        save_file(STATE, path)
    with pytest.raises((UserError, TypeError)):
        save_file({"model": np.zeros(100_000), "late": FailsToPickle(error)}, path)
    assert files(tmp_path) == (["state.pdparams"] if old else [])
    if old:
        assert_is_state(load_file(path))


def test_target_changes_only_after_everything_is_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "state.pdparams"
    save_file({"epoch": 1}, path)
    seen, real = [], os.fsync

    def spy(descriptor):
        seen.append(load_file(path)["epoch"])
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    save_file({"epoch": 2}, path)
    assert seen[0] == 1  # the later ones flush the folder, after the renaming
    assert load_file(path)["epoch"] == 2


def test_full_disk_is_said_with_the_path(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError) as caught:
        save_file({"late": FailsToPickle(error)}, tmp_path / "state.pdparams")
    assert_one_line(caught.value, [str(tmp_path / "state.pdparams"), "No space left on device"])


def test_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        save_file(STATE, tmp_path / "file" / "state.pdparams")
    assert_one_line(caught.value, [str(tmp_path / "file" / "state.pdparams"), "-output"])


@pytest.mark.parametrize("name", ["none", "none.pdparams", "no/such/folder/x.pdparams", "."])
def test_missing_file(tmp_path, name):
    with pytest.raises(UserError) as caught:
        load_file(tmp_path / name)
    assert_one_line(caught.value, [f"no checkpoint at {tmp_path / name}", ".pdparams"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint\n",
        bytes(range(256)) * 20,
        b"PK\x03\x04" + b"\0" * 100,
        pickle.dumps(STATE, protocol=4)[:-40],
        pickle.dumps([1, 2, 3], protocol=4),
        pickle.dumps(np.zeros(3), protocol=4),
    ],
    ids=["empty", "text", "bytes", "zip", "truncated", "list", "array"],
)
def test_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "garbage.pdparams"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_file(path)
    assert str(path) in str(caught.value)


# ---- weights


def test_numpy_state_is_a_copy_under_structured_names():
    model = make_model()
    state = numpy_state(model)
    assert state.keys() == model.state_dict().keys()
    assert "stages.0.blocks.0.attention.query.norm._variance" in state
    before = state["head.bias"].copy()
    model.head.bias.set_value(before + 1)
    np.testing.assert_array_equal(state["head.bias"], before)


def test_find_weights_in_a_training_state_or_the_file_itself():
    weights = STATE["model"]
    assert find_weights(STATE, "file").keys() == weights.keys()
    assert find_weights({**weights, "note": "text"}, "file").keys() == weights.keys()


def test_all_weights_are_copied():
    source, target = make_model(seed=1), make_model(seed=2)
    report = load_weights(target, numpy_state(source), "source")
    assert sorted(report.loaded) == sorted(source.state_dict())
    assert not report.missing + report.unexpected + report.mismatched
    assert not report.new_head
    for name, array in numpy_state(target).items():
        np.testing.assert_array_equal(array, source.state_dict()[name].numpy(), err_msg=name)


def wrong_shape(weights):
    weights["stages.3.blocks.0.mlp.fc2.weight"] = np.zeros((2, 3), np.float32)
    return ["stages.3.blocks.0.mlp.fc2.weight (2, 3) for (128, 32)", "1 of another shape"]


def transposed(weights):
    weights["stages.3.blocks.0.mlp.fc2.weight"] = weights["stages.3.blocks.0.mlp.fc2.weight"].T
    return ["(32, 128) for (128, 32)", "1 of another shape"]


def missing(weights):
    del weights["norm.weight"]
    return ["norm.weight", "1 missing"]


def unexpected(weights):
    weights["extra.weight"] = np.zeros(3, np.float32)
    return ["extra.weight", "1 unexpected"]


@pytest.mark.parametrize("replace_head", [False, True])
@pytest.mark.parametrize("damage", [wrong_shape, transposed, missing, unexpected])
def test_weights_that_do_not_fit_change_nothing(damage, replace_head):
    weights = numpy_state(make_model(seed=1))
    parts = damage(weights)
    model = make_model(seed=2)
    before = numpy_state(model)
    with pytest.raises(UserError) as caught:
        load_weights(model, weights, "some/file.pdparams", replace_head)
    assert_one_line(caught.value, ["some/file.pdparams", *parts])
    for name, array in numpy_state(model).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_of_another_precision_are_converted(dtype):
    weights = {name: array.astype(dtype) for name, array in numpy_state(make_model(seed=1)).items()}
    model = make_model(seed=2)
    load_weights(model, weights, "source")
    for name, array in numpy_state(model).items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, weights[name], rtol=1e-3, err_msg=name)


def skeleton(embed_dim, depths):
    """Enough of a model's weights to tell which one it is."""
    blocks = [
        f"stages.{stage}.blocks.{block}.norm1.weight" for stage, depth in enumerate(depths) for block in range(depth)
    ]
    return {name: np.zeros(embed_dim, np.float32) for name in ["stages.0.merging.conv.bias", *blocks]}


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_of_another_variant_are_named(name):
    weights = skeleton(VARIANTS[name]["embed_dim"], VARIANTS[name]["depths"])
    with pytest.raises(UserError) as caught:
        load_weights(make_model(), weights, "file", replace_head=True)
    assert_one_line(caught.value, [f"these are {name} weights", "MODEL.NAME"])


def test_whole_nano_weights_are_named():
    weights = numpy_state(create_model("pale_nano", num_classes=3))
    with pytest.raises(UserError, match=r"pale_nano weights; set MODEL\.NAME"):
        load_weights(make_model(), weights, "file")


@pytest.mark.parametrize(("embed_dim", "depths"), [(6, (1, 1, 1, 1)), (4, (1, 2, 3, 1))])
def test_weights_of_a_model_of_ones_own_are_described(embed_dim, depths):
    weights = numpy_state(make_model(embed_dim=embed_dim, depths=depths))
    with pytest.raises(UserError) as caught:
        load_weights(make_model(), weights, "file")
    assert_one_line(caught.value, [str(depths), f"{embed_dim} channels"])


@pytest.mark.parametrize("weights", [{}, {"conv1.weight": np.zeros((3, 3), np.float32)}])
def test_weights_of_something_else_are_said_to_be(weights):
    with pytest.raises(UserError, match="no Pale Transformer weights"):
        load_weights(make_model(), weights, "file", replace_head=True)


def test_an_auxiliary_head_of_another_model_is_kept_and_loaded():
    """As PaddleSeg's DDRNet has one; what only training uses, a model itself must say."""

    model, again = (nn.Sequential(("head", nn.Linear(2, 3)), ("aux_head", nn.Linear(2, 3))) for _ in range(2))
    report = load_weights(again, deployed_state(model), "best")
    assert not report.left_out
    for name, array in numpy_state(model).items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), array, err_msg=name)


# ---- attention and position encoding


@pytest.mark.parametrize(
    ("of_file", "of_model"), [("cpe", "none"), ("none", "cpe"), ("absolute", "relative"), ("relative", "absolute")]
)
def test_weights_of_another_position_encoding_are_named(of_file, of_model):
    weights = numpy_state(make_model(position_encoding=of_file, image_size=32))
    with pytest.raises(UserError) as caught:
        load_weights(make_model(position_encoding=of_model, image_size=32), weights, "file", replace_head=True)
    assert_one_line(caught.value, [f"position encoding {of_file}", f"model {of_model}", "MODEL.POSITION_ENCODING"])


@pytest.mark.parametrize("position_encoding", ["absolute", "relative"])
def test_learned_positions_of_another_image_size_are_interpolated(position_encoding):
    source = make_model(seed=1, position_encoding=position_encoding, image_size=32)
    model = make_model(seed=2, position_encoding=position_encoding, image_size=(64, 96))
    report = load_weights(model, numpy_state(source), "file")
    assert len(report.loaded) == len(model.state_dict())
    assert report.interpolated
    for line in report.interpolated:
        name, _, sizes = line.partition(" ")
        assert name.endswith(".table")
        assert f"interpolated: {name} {sizes}" in str(report)
    source.eval()
    model.eval()
    images = paddle.rand([1, 3, 64, 96])
    np.testing.assert_allclose(model(images).numpy(), source(images).numpy(), rtol=1e-4, atol=1e-5)


def test_a_table_for_other_heads_is_not_interpolated():
    weights = numpy_state(make_model(position_encoding="relative", image_size=32))
    name = next(name for name in weights if name.endswith(".table"))
    weights[name] = np.concatenate([weights[name]] * 2)
    with pytest.raises(UserError, match=r"another attention.* 1 of another shape"):
        load_weights(make_model(position_encoding="relative", image_size=32), weights, "file")


PALE = {"attention": "pale", "pale_size": [2, 2, 2, 2], "parallel": True}


@pytest.mark.parametrize(
    ("record", "settings", "parts"),
    [
        ({"attention": PALE}, {}, []),
        ({}, {"attention": "window"}, []),  # weights of somebody else's, which say nothing
        ({"config": "of an earlier version"}, {}, []),
        ({"config": "of an earlier version"}, {"attention": "window"}, ["attention pale, not window"]),
        ({"attention": PALE}, {"pale_size": 3}, ["pale_size [2, 2, 2, 2], not [3, 3, 3, 3]"]),
        ({"attention": PALE}, {"pale_size": (2, 2)}, []),
        ({"attention": PALE}, {"parallel": False}, ["parallel True, not False"]),
        ({"attention": PALE}, {"attention": "axial", "parallel": False}, ["pale, not axial", "parallel True"]),
        ({"attention": "damaged"}, {"attention": "window"}, []),
    ],
)
def test_another_attention_is_refused_where_weights_are_used_as_they_are_and_said_where_they_are_trained(
    record, settings, parts, tmp_path
):
    model = make_model(**settings)
    state = {"model": numpy_state(model), **record}
    save_file(state, tmp_path / "source.pdparams")
    report = load_pretrained(model, tmp_path / "source.pdparams")
    assert bool(report.note) == bool(parts)
    assert all(part in str(report) for part in parts)
    if parts:
        with pytest.raises(UserError) as caught:
            refuse_other_attention(model, state, "file")
        assert_one_line(caught.value, ["file", "MODEL.ATTENTION", *parts])
    else:
        refuse_other_attention(model, state, "file")


def test_a_model_around_a_backbone_says_what_the_backbone_does():
    whole = nn.Sequential()
    whole.backbone = make_model(attention="cross", parallel=False)
    assert attention_of(whole) == {"attention": "cross", "pale_size": [2, 2, 2, 2], "parallel": False}
    assert attention_of(nn.Linear(2, 3)) == {}


# ---- heads


@pytest.mark.parametrize(("file_classes", "own_classes"), [(7, 3), (0, 3), (7, 0)])
def test_another_head_is_left_out_where_that_is_allowed(tmp_path, file_classes, own_classes):
    source, model = make_model(file_classes, seed=1), make_model(own_classes, seed=2)
    save_file({"model": numpy_state(source), "epoch": 1}, tmp_path / "source.pdparams")
    own_head = {name: array for name, array in numpy_state(model).items() if name.startswith("head.")}
    report = load_pretrained(model, tmp_path / "source.pdparams")
    assert report.new_head == bool(own_classes)
    assert ("new head" in str(report)) == bool(own_classes)
    assert not [name for name in report.loaded if name.startswith("head.")]
    for name, array in numpy_state(model).items():
        expected = own_head[name] if name in own_head else source.state_dict()[name].numpy()
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_half_a_head_is_left_out_as_a_whole():
    source, model = make_model(seed=1), make_model(seed=2)
    weights, own = numpy_state(source), numpy_state(model)
    del weights["head.bias"]
    assert load_weights(model, weights, "file", replace_head=True).new_head
    np.testing.assert_array_equal(model.head.weight.numpy(), own["head.weight"])
    assert (own["head.weight"] != weights["head.weight"]).any()


def test_fitting_head_is_loaded_and_no_new_head_is_said(tmp_path):
    source, model = make_model(seed=1), make_model(seed=2)
    save_file(numpy_state(source), tmp_path / "source.pdparams")
    report = load_pretrained(model, tmp_path / "source")
    assert not report.new_head
    assert "new head" not in str(report)
    np.testing.assert_array_equal(model.head.weight.numpy(), source.head.weight.numpy())


def test_another_head_is_an_error_where_it_is_not_allowed(tmp_path):
    model = make_model(3, seed=2)
    before = numpy_state(model)
    save_file(numpy_state(make_model(7)), tmp_path / "source.pdparams")
    with pytest.raises(UserError) as caught:
        load_pretrained(model, tmp_path / "source.pdparams", replace_head=False)
    assert_one_line(caught.value, ["7 classes", "the model 3", str(tmp_path / "source.pdparams")])
    for name, array in numpy_state(model).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)

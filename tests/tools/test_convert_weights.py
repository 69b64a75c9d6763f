"""Converted weights compute what they computed before, and what cannot be converted is named."""

import os
import re
import subprocess

import numpy as np
import paddle
import pytest

from common.checkpoints.file_format import load_file, save_file
from common.checkpoints.loading import attention_of, load_pretrained, numpy_state
from common.errors import UserError
from common.pale_transformer import PaleTransformer, create_model
from image_classification.config import default_config
from image_classification.pale_backbone import build_model
from tests.helpers.programs import ROOT
from tests.helpers.unofficial_reading import logits, make_state
from tools.convert_weights import main

DEPTHS, HEADS, PALE = (1, 2, 1, 1), (1, 2, 2, 4), 2
IMAGES = np.random.default_rng(1).standard_normal((2, 3, 64, 128)).astype(np.float32)
BLOCK = "ps_blocks.1.1"


def build(**overrides):
    paddle.seed(0)
    heads = [2 * number for number in HEADS]
    sizes = {"embed_dim": 8, "depths": DEPTHS, "num_heads": heads, "pale_size": PALE, "num_classes": 5}
    return PaleTransformer(**{**sizes, "stage_norms": False, **overrides})


def randomize(model):
    rng = np.random.default_rng(2)
    for name, tensor in model.state_dict().items():
        value = rng.uniform(0.5, 1.5, tensor.shape) if "variance" in name else rng.normal(0, 0.3, tensor.shape)
        tensor.set_value(value.astype("float32"))
    return model


def our_logits(weights_file):
    model = create_model(
        "pale_nano", embed_dim=8, depths=DEPTHS, num_heads=[2 * number for number in HEADS], pale_size=PALE,
        stage_norms=False, pretrained=weights_file,
    )  # fmt: skip
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor(IMAGES)).numpy()


def assert_same_arrays(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_same_logits(found, expected):
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.fixture
def files(tmp_path):
    """Paths for weights of theirs, of ours, and of theirs made from ours."""
    return tmp_path / "theirs.safetensors", tmp_path / "ours.pdparams", tmp_path / "back.safetensors"


# ---- the function is kept


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_converted_weights_compute_what_an_independent_forward_pass_computes(files, qkv_bias):
    theirs, ours, back = files
    state = make_state(qkv_bias=qkv_bias)
    expected = logits(state, IMAGES, HEADS, PALE)
    save_file(state, theirs)
    main([str(theirs), str(ours)])
    assert_same_logits(our_logits(ours), expected)
    main([str(ours), str(back), "-to", "torch"])
    assert_same_logits(logits(load_file(back), IMAGES, HEADS, PALE), expected)


def test_our_weights_compute_the_same_in_the_other_layout(files):
    _, ours, back = files
    model = randomize(build())
    save_file({"model": numpy_state(model), "epoch": 3}, ours)
    main([str(ours), str(back), "-to", "torch"])
    model.eval()
    with paddle.no_grad():
        expected = model(paddle.to_tensor(IMAGES)).numpy()
    assert_same_logits(logits(load_file(back), IMAGES, HEADS, PALE), expected)


def test_the_independent_pass_notices_what_a_conversion_may_get_wrong():
    """Scale, heads, and which tokens meet matter for these weights."""
    state = make_state()
    expected = logits(state, IMAGES, HEADS, PALE)
    for other in (
        logits(state, IMAGES, [2 * number for number in HEADS], PALE),
        logits(state, IMAGES, HEADS, 1),
        logits({name: a * 2**-0.5 if "qkv.0.pw" in name else a for name, a in state.items()}, IMAGES, HEADS, PALE),
    ):
        assert np.abs(other - expected).max() > 1e-3 * np.abs(expected).max()


# ---- and back again, bit by bit


def test_our_weights_come_back_bit_by_bit(files):
    theirs, ours, _ = files
    weights = numpy_state(randomize(build()))
    save_file(weights, ours)
    main([str(ours), str(theirs), "-to", "torch"])
    main([str(theirs), str(ours)])
    assert_same_arrays(load_file(ours), weights)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_their_weights_come_back_bit_by_bit(files, dtype):
    theirs, ours, back = files
    state = make_state(dtype=dtype)
    for name in state:  # what BatchNorm cancels, and what it counts, is not kept
        if name.endswith((".dw.bias", ".num_batches_tracked")):
            state[name] = np.zeros_like(state[name])
    save_file(state, theirs)
    main([str(theirs), str(ours)])
    main([str(ours), str(back), "-to", "torch"])
    assert_same_arrays(load_file(back), state)


def test_depthwise_bias_goes_into_the_mean_of_its_norm(files, capsys):
    theirs, ours, _ = files
    state = make_state()
    save_file(state, theirs)
    main([str(theirs), str(ours)])
    assert "15 biases of depthwise convolutions were taken off the means of BatchNorms" in capsys.readouterr().out
    prefix = f"{BLOCK}.attn.qkv.2"
    mean = load_file(ours)["stages.1.blocks.1.attention.value.norm._mean"]
    expected = state[f"{prefix}.bn.running_mean"] - state[f"{prefix}.dw.bias"]
    assert np.abs(state[f"{prefix}.dw.bias"]).min() > 0
    np.testing.assert_array_equal(mean, expected)


# ---- what does not fit is named


def convert_with(files, change, capsys, *flags):
    """Convert a state dict after a change, which must be refused; return what was printed and the error."""
    theirs, ours, _ = files
    state = make_state()
    change(state)
    save_file(state, theirs)
    with pytest.raises(UserError) as caught:
        main([str(theirs), str(ours), *flags])
    assert not ours.exists()
    return capsys.readouterr().out, str(caught.value)


def replace(name, array):
    return lambda state: state.update({name: array})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (replace("ps_blocks.0.0.gamma", np.ones(8)), "not in the other model: ps_blocks.0.0.gamma"),
        (lambda state: state.pop(f"{BLOCK}.cpe.bias"), f"not in the file: {BLOCK}.cpe.bias"),
        (
            replace(f"{BLOCK}.cpe.weight", np.ones((16, 1, 5, 5))),
            f"of another shape: {BLOCK}.cpe.weight (16, 1, 5, 5) for (16, 1, 3, 3)",
        ),
        (replace(f"{BLOCK}.mlp.fc2.weight", np.ones((16, 64))), f"{BLOCK}.mlp.fc2.weight (16, 64) for (16, 64, 1, 1)"),
        (replace(f"{BLOCK}.cpe.bias", np.ones(16, np.int64)), f"{BLOCK}.cpe.bias of int64 for floating-point numbers"),
        (lambda state: state.pop(f"{BLOCK}.attn.qkv.1.pw.weight"), f"not in the file: {BLOCK}.attn.qkv.1.pw.weight"),
        (
            lambda state: state.pop(f"{BLOCK}.attn.qkv.1.bn.running_mean"),
            f"the other model: {BLOCK}.attn.qkv.1.dw.bias",
        ),
        (lambda state: state.pop("proj.bias"), "not in the other model: proj.weight"),
    ],
)
def test_array_without_a_place_is_named_and_nothing_is_written(files, capsys, change, line):
    printed, error = convert_with(files, change, capsys)
    assert line in printed
    assert "ours.pdparams was not written" in error
    assert "-partial" in error


def test_partial_writes_the_rest(files, capsys):
    theirs, ours, _ = files
    save_file(make_state() | {f"{BLOCK}.cpe.weight": np.ones((16, 1, 5, 5))}, theirs)
    main([str(theirs), str(ours), "-partial"])
    assert f"of another shape: {BLOCK}.cpe.weight" in capsys.readouterr().out
    weights = load_file(ours)
    assert set(numpy_state(build())) - set(weights) == {"stages.1.blocks.1.position_encoding.weight"}


def widths(channels):
    return lambda state: (state.clear(), state.update(make_state(channels=channels)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("patch_merg_convs.2.weight"), "no weights of this layout"),
        (replace("patch_merg_convs.4.weight", np.ones((1, 1, 1, 1))), "no weights of this layout"),
        (replace("patch_merg_convs.0.weight", np.ones((0, 0, 0, 0))), "no weights of this layout"),
        (replace("ps_blocks.3.0.mlp.fc1.bias", np.ones((4, 4))), "no weights of this layout"),
        (replace("ps_blocks.3.0.mlp.fc1.bias", np.ones(100)), r"its MLPs are \(32, 64, 128, 100\) wide"),
        (widths((8, 12, 16, 20)), r"its stages have \(8, 12, 16, 20\) channels; in our model they double"),
    ],
)
def test_another_model_is_refused(files, capsys, change, message):
    printed, error = convert_with(files, change, capsys)
    assert not printed
    assert re.search(message, error)


def test_norms_of_the_stages_are_refused_on_the_way_to_torch(files, capsys):
    _, ours, back = files
    save_file(numpy_state(build(stage_norms=True)), ours)
    with pytest.raises(UserError, match="was not written"):
        main([str(ours), str(back), "-to", "torch"])
    printed = capsys.readouterr().out
    assert printed.count("not in the other model") == 10
    assert "not in the other model: stages.0.merging.norm.weight" in printed
    assert "weights trained with stage_norms=False fit it" in printed


@pytest.mark.parametrize("other", [{"attention": "cross"}, {"parallel": False}])
def test_another_attention_is_refused_on_the_way_to_torch(files, other):
    _, ours, back = files
    model = build(**other)
    save_file({"model": numpy_state(model), "attention": attention_of(model)}, ours)
    with pytest.raises(UserError, match=r"learnt with another attention, .*parallel pales only"):
        main([str(ours), str(back), "-to", "torch"])
    save_file({"model": numpy_state(model), "attention": attention_of(build())}, ours)
    main([str(ours), str(back), "-to", "torch"])


def test_a_model_with_norms_says_why_converted_weights_do_not_fit(files):
    theirs, ours, _ = files
    save_file(make_state(), theirs)
    main([str(theirs), str(ours)])
    with pytest.raises(UserError, match="these have no norms of the stages, see the model's stage_norms"):
        create_model("pale_nano", embed_dim=8, depths=DEPTHS, pretrained=ours)
    save_file(numpy_state(build(stage_norms=True)), ours)
    with pytest.raises(UserError, match="these have the norms of the stages"):
        our_logits(ours)


def test_wrong_direction_is_refused(files):
    theirs, ours, back = files
    save_file(make_state(), theirs)
    with pytest.raises(UserError, match=r"begin with stages\.0\.merging\.conv\.weight .*-to for the direction"):
        main([str(theirs), str(back), "-to", "torch"])
    save_file(numpy_state(build()), ours)
    with pytest.raises(UserError, match=r"begin with patch_merg_convs\.0\.weight"):
        main([str(ours), str(ours.with_name("other.pdparams"))])


@pytest.mark.parametrize(("target", "to"), [("x.pth", "torch"), ("x.pdparams", "torch"), ("x.pth", "paddle")])
def test_file_that_cannot_be_written_is_refused_first(target, to):
    with pytest.raises(UserError, match=f"cannot write {target} for {to}; name a .*safetensors file"):
        main(["missing.pth", target, "-to", to])


def test_weights_inside_a_training_state_and_of_a_wrapped_model_are_found(files):
    theirs, ours, _ = files
    state = make_state()
    save_file({f"module.{name}": array for name, array in state.items()}, theirs)
    main([str(theirs), str(ours)])
    assert_same_logits(our_logits(ours), logits(state, IMAGES, HEADS, PALE))
    nested = theirs.with_suffix(".pdparams")
    save_file({"state_dict": state, "epoch": 3}, nested)
    again = ours.with_name("again.pdparams")
    main([str(nested), str(again)])
    assert_same_arrays(load_file(again), load_file(ours))


def test_usage_names_the_variant_or_its_sizes(files, capsys):
    theirs, ours, _ = files
    save_file(make_state(), theirs)
    main([str(theirs), str(ours)])
    printed = capsys.readouterr().out
    assert 'create_model("pale_base", embed_dim=8, depths=(1, 2, 1, 1), mlp_ratio=4, num_heads=TWICE' in printed
    save_file(make_state(channels=(20, 40, 80, 160), depths=(1, 1, 3, 1)), theirs)
    main([str(theirs), str(ours)])
    assert 'create_model("pale_nano", num_heads=TWICE' in capsys.readouterr().out


def test_a_configuration_builds_the_model_that_takes_converted_weights(files):
    theirs, ours, _ = files
    state = make_state(channels=(20, 40, 80, 160), depths=(1, 1, 3, 1))
    save_file(state, theirs)
    main([str(theirs), str(ours)])
    config = default_config()
    config.MODEL.update(NAME="pale_nano", NUM_HEADS=[2, 4, 4, 8], STAGE_NORMS=False, PALE_SIZE=[PALE])
    model = build_model(config, num_classes=5)
    load_pretrained(model, ours)
    model.eval()
    with paddle.no_grad():
        found = model(paddle.to_tensor(IMAGES)).numpy()
    assert_same_logits(found, logits(state, IMAGES, (1, 2, 2, 4), PALE))


# ---- the unofficial code itself

THEIR_PASS = """
import importlib.util, sys
import numpy as np, torch
from safetensors.torch import load_file

code, folder, *weights = sys.argv[1:]
spec = importlib.util.spec_from_file_location("reading", code)
reading = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reading)
torch.manual_seed(0)
model = reading.PS_Transformer(reading.args)
for name, tensor in model.state_dict().items():
    if name.endswith(("running_var", "bn.weight", "ln.weight")):
        tensor.uniform_(0.5, 1.5)
    elif tensor.is_floating_point():
        tensor.normal_(0, tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.3)
if weights:
    model.load_state_dict(load_file(weights[0]))
torch.save(model.state_dict(), f"{folder}/weights.pth")
model.softmax = torch.nn.Identity()
model.eval()
images = torch.from_numpy(np.load(f"{folder}/images.npy"))
with torch.no_grad():
    np.save(f"{folder}/logits.npy", model(images).numpy())
"""


@pytest.mark.slow
def test_pale_b_of_the_unofficial_code_computes_the_same(tmp_path):
    """With PALE_UNOFFICIAL_CODE=.../pale-transformer.py, which is not part of this project."""
    code, python = os.environ.get("PALE_UNOFFICIAL_CODE"), ROOT / ".venv-peers" / "bin" / "python"
    if not code or not python.exists():
        pytest.skip("needs PALE_UNOFFICIAL_CODE and .venv-peers; see docs/reproduction.md")
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    theirs, ours, back = (tmp_path / name for name in ("weights.pth", "ours.pdparams", "back.safetensors"))

    def their_logits(*weights):
        subprocess.run([python, "-c", THEIR_PASS, code, str(tmp_path), *map(str, weights)], check=True)
        return np.load(tmp_path / "logits.npy")

    expected = their_logits()
    main([str(theirs), str(ours)])
    model = create_model("pale_base", num_heads=(8, 16, 32, 64), stage_norms=False, pretrained=ours)
    model.eval()
    with paddle.no_grad():
        found = model(paddle.to_tensor(images)).numpy()
    main([str(ours), str(back), "-to", "torch"])
    found_back = their_logits(back)
    for logits_found in (found, found_back):
        print(f"largest difference {np.abs(logits_found - expected).max():.1e} of {np.abs(expected).max():.0f}")
        assert_same_logits(logits_found, expected)

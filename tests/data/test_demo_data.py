"""Demo data: downloads with a stand-in for pip, and the real data sets."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest

from common.demo_data import wheels as demo_data
from common.demo_data.__main__ import main
from common.errors import UserError
from tests.helpers.programs import ROOT

WHEEL = demo_data.Wheel(
    package="toy",
    version="1.0",
    sha256="0" * 64,
    megabytes=0.1,
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
            assert options["cwd"].samefile(folder)  # python -m pip would import a pip.py of the present folder
            if returncode == 0:
                with zipfile.ZipFile(folder / "toy-1.0-py3-none-any.whl", "w") as archive:
                    for member in ("toy/__init__.py", *WHEEL.members):
                        archive.writestr(member, f"text of {member}")
            during(folder)
            return subprocess.CompletedProcess(command, returncode, "", stderr)

        monkeypatch.setattr(demo_data.subprocess, "run", run)
        return commands

    return install


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_pip_ends_with_the_program_that_started_it(tmp_path, number):
    with socket.create_server(("localhost", 0)) as silent:  # never answers
        index = f"http://localhost:{silent.getsockname()[1]}"
        environment = os.environ | {"PALE_DATA": str(tmp_path), "PIP_INDEX_URL": index, "PIP_NO_CACHE_DIR": "1"}
        command = [sys.executable, "-m", "common.demo_data", "mnist5k"]
        program = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        connection, _ = silent.accept()
        with connection:
            (pip,) = psutil.Process(program.pid).children()
            program.send_signal(number)
            pip.wait(timeout=30)
            program.wait(timeout=30)
    if number == signal.SIGTERM:
        assert program.returncode == 128 + number
        assert not list(tmp_path.iterdir())


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


def test_a_failed_download_is_explained_and_leaves_nothing(pip, tmp_path):
    pip(returncode=1, stderr="WARNING: Retrying\nERROR: No matching distribution found for toy==1.0\n\n")
    with pytest.raises(UserError, match=r"toy==1\.0 .*\(ERROR: No matching distribution found.*check the network"):
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
    with pytest.raises(UserError, match=r"toy has no a\.txt, so a part is missing; rename"):
        demo_data.fetch("toy", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set PALE_DATA"):
        demo_data.fetch("toy", tmp_path / "file")


def test_command_line(pip, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PALE_DATA", str(tmp_path))
    pip()
    main(["toy"])
    assert capsys.readouterr().out == f"toy: {tmp_path / 'toy'}\n"
    with pytest.raises(UserError, match=r"unknown demo data 'nothing': choose from .*toy"):
        main(["nothing"])


# ---- the real data sets

MNIST5K_TEST_SHA256 = "c972a295a6b070d09b77be5da44b3a6e2db44152540a0f03bd062776a9a732c1"


def test_mnist5k_has_a_fixed_stratified_split():
    (train_images, train_labels), (test_images, test_labels) = demo_data.load_mnist5k()
    assert (train_images.shape, train_images.dtype) == ((4000, 28, 28), np.uint8)
    np.testing.assert_array_equal(np.bincount(train_labels), [400] * 10)
    np.testing.assert_array_equal(np.bincount(test_labels), [100] * 10)
    # Results are only comparable while everybody holds out the same digits.
    assert hashlib.sha256(test_images.tobytes()).hexdigest() == MNIST5K_TEST_SHA256


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "mnist5k").mkdir()
    (tmp_path / "mnist5k" / "LICENSE").touch()
    (tmp_path / "mnist5k" / "mnist_5k.csv.gz").write_bytes(b"\x1f\x8bno more")
    with pytest.raises(UserError, match=r"is damaged .*: delete its folder"):
        demo_data.load_mnist5k(tmp_path)

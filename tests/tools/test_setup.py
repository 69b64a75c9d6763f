"""tools/setup.sh, run in a copy of what it reads, with a script in place of Python so that nothing is installed."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.helpers.programs import ROOT

# Answers what setup.sh asks of Python; environment variables make it fail. It appends every call to $CALLS.
FAKE_PYTHON = f"""#!{shutil.which("bash")}
echo "$*" >>"$CALLS"
case "$*" in
*version_info*) echo "${{FAKE_VERSION:-3.11}}" ;;
"-c import ensurepip, venv") exit "${{NO_ENSUREPIP:-0}}" ;;
"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
"-m pip install"*) [[ -z ${{PIP_ERROR:-}} ]] || {{ echo "$PIP_ERROR" >&2; exit 1; }} ;;
"-c import paddle") [[ -z ${{PADDLE_ERROR:-}} ]] || {{ echo "$PADDLE_ERROR" >&2; exit 1; }} ;;
"-m "*) ;;
*) exec "{sys.executable}" "$@" ;;
esac
"""


@pytest.fixture
def tree(tmp_path):
    """The files that setup.sh reads, in a folder with a space in its name, and ``bin/`` to be the PATH."""
    tree = tmp_path / "a tree"
    (tree / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools/setup.sh", tree / "tools")
    for file in (ROOT / "pyproject.toml", *ROOT.glob("requirements*.txt")):
        shutil.copy(file, tree)
    (tree / "bin").mkdir()
    for command in ("bash", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "rm", "tail"):
        (tree / "bin" / command).symlink_to(shutil.which(command))
    (tree / "bin/python3").write_text(FAKE_PYTHON)
    (tree / "bin/python3").chmod(0o755)
    return tree


def set_up(tree, *arguments, **environment):
    """Run setup.sh from another folder."""
    return subprocess.run(
        ["bash", str(tree / "tools/setup.sh"), *arguments],
        cwd=tree.parent,
        env={"PATH": str(tree / "bin"), "CALLS": str(tree / "calls"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def installs(tree):
    return [line for line in (tree / "calls").read_text().splitlines() if line.startswith("-m pip install")]


@pytest.mark.parametrize("script", ["tools/setup.sh", "tools/build_site.sh", ".ci/run"])
def test_scripts_are_executable_and_parse(script):
    assert script == "tools/build_site.sh" or os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_it_installs_once_and_again_after_a_change(tree):
    first = set_up(tree)
    assert first.returncode == 0, first.stderr
    assert first.stdout.endswith("    .venv/bin/python image_classification/main_multi_gpu.py\n")
    assert "-r requirements.txt -e .[dev,export]" in installs(tree)[0]
    assert "--no-deps -r requirements-toolkits.txt" in installs(tree)[1]

    assert ".venv: already set up" in set_up(tree).stdout
    assert len(installs(tree)) == 2
    assert (tree / "calls").read_text().count("-m common.demo_data mnist5k") == 2

    with (tree / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert set_up(tree).returncode == 0
    assert len(installs(tree)) == 4


@pytest.mark.parametrize(
    ("driver", "capabilities", "build", "paddle"),
    [
        ("13.0", "9.0", "", "paddlepaddle-gpu=={} -i https://www.paddlepaddle.org.cn/packages/stable/cu130/"),
        ("12.9", "12.0", "", "paddlepaddle-gpu=={} -i https://www.paddlepaddle.org.cn/packages/stable/cu129/"),
        ("12.4", "8.0\n8.0", "", "paddlepaddle-gpu=={} -i https://www.paddlepaddle.org.cn/packages/stable/cu126/"),
        ("13.0", "8.6\n7.0", "", "paddlepaddle-gpu=={} -i https://www.paddlepaddle.org.cn/packages/stable/cu118/"),
        ("12.4", "8.0", "cu118", "paddlepaddle-gpu=={} -i https://www.paddlepaddle.org.cn/packages/stable/cu118/"),
        (None, None, "pypi", "paddlepaddle-gpu==2.6.2"),
    ],
)
def test_the_gpu_build_fits_the_driver_and_the_cards(tree, driver, capabilities, build, paddle):
    if driver:
        (tree / "bin/nvidia-smi").write_text(
            f"#!{shutil.which('bash')}\n"
            f"[[ -z $1 ]] && echo '| NVIDIA-SMI 1.2  Driver Version: 1.2  CUDA Version: {driver} |' "
            f"|| echo '{capabilities}'\n"
        )
        (tree / "bin/nvidia-smi").chmod(0o755)
    result = set_up(tree, "--gpu", *([build] if build else []))
    assert result.returncode == 0, result.stderr
    (version,) = re.findall(r"^paddlepaddle==(.*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert installs(tree)[0].endswith(paddle.format(version))
    assert "-r requirements-gpu.txt -e .[dev" in installs(tree)[1]


def test_another_build_replaces_the_installed_one(tree):
    set_up(tree)
    set_up(tree, "--gpu", "cu118")
    set_up(tree, "--gpu", "cu126")
    calls = (tree / "calls").read_text()
    assert calls.count("pip uninstall --quiet --yes paddlepaddle-gpu paddlepaddle\n") == 2
    assert set_up(tree, "--gpu", "cu126").stdout.count("already set up") == 1


def test_another_python_makes_a_new_environment(tree):
    set_up(tree)
    shutil.copy(tree / "bin/python3", tree / "bin/other")
    other = (tree / "bin/other").read_text().replace("FAKE_VERSION:-3.11", "FAKE_VERSION:-3.12")
    (tree / "bin/other").write_text(other)
    result = set_up(tree, PYTHON="a tree/bin/other")
    assert result.returncode == 0, result.stderr
    assert ".venv: creating" in result.stdout
    assert len(installs(tree)) == 4


def test_a_failed_installation_is_repeated(tree):
    assert "error: pip cannot install -r requirements.txt" in set_up(tree, PIP_ERROR="no such host").stderr
    assert set_up(tree).returncode == 0
    assert len(installs(tree)) == 3


@pytest.mark.parametrize(
    ("arguments", "environment", "parts"),
    [
        ([], {"PYTHON": "python3", "FAKE_VERSION": "3.9"}, ["PYTHON=python3 is Python 3.9", "3.10, 3.11, 3.12, 3.13"]),
        ([], {"PYTHON": "/no/python"}, ["PYTHON=/no/python does not run", "3.10, 3.11, 3.12, 3.13"]),
        ([], {"FAKE_VERSION": "3.14"}, ["no supported Python on PATH", "PYTHON"]),
        (["--gpu", "pypi"], {"PYTHON": "python3", "FAKE_VERSION": "3.13"}, ["supported are 3.10, 3.11, 3.12"]),
        (["--gpu"], {}, ["nvidia-smi", "--gpu cu126"]),
        (["--gpu", "cu122"], {}, ["cu122", "cu118, cu126, cu129, cu130 or pypi"]),
        ([], {"NO_ENSUREPIP": "1"}, ["apt-get install python3.11-venv"]),
        ([], {"PADDLE_ERROR": "ImportError: libgomp.so.1: cannot open shared object file"}, ["install libgomp1"]),
        ([], {"PADDLE_ERROR": "ImportError: something else"}, ["ImportError: something else", ".venv/setup.log"]),
        (["--cuda"], {}, ["--cuda", "--gpu"]),
    ],
)
def test_what_is_missing_is_named_in_one_line(tree, arguments, environment, parts):
    result = set_up(tree, *arguments, **environment)
    assert result.returncode == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert all(part in error for part in parts)

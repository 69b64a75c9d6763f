"""What ``pip install`` gives: one package, ``pale_transformer``, for which Paddle is chosen by the user."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.helpers.commands import blocks
from tests.helpers.programs import ROOT


@pytest.mark.slow
def test_the_documented_examples_run_with_the_wheel_beside_a_folder_called_common(tmp_path):
    source = tmp_path / "source"  # a copy: pip leaves build/ in it
    shutil.copytree(ROOT / "common", source / "common")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", source]
    subprocess.run(pip, check=True)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    assert [path.name.partition("-")[0] for path in sorted(site.iterdir())] == [
        "pale_transformer",
        "pale_transformer_paddle",
    ]
    # Paddle and the toolkits are those of the tests; an editable installation there is not read.
    (site / "tests.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))

    folder = tmp_path / "folder"
    (folder / "common").mkdir(parents=True)
    (folder / "common" / "__init__.py").write_text("raise ImportError('the wrong package')")
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "digit.png", folder / "docs")
    documents = ("README.md", "docs/library.md", "docs/paddleseg.md", "docs/paddledetection.md")
    examples = "".join(text for document in documents for text in blocks(ROOT / document, "python"))
    examples = examples.replace("from common.pale_transformer import", "from pale_transformer import")
    (folder / "examples.py").write_text(f"import pale_transformer\n{examples}")  # before paddle, see library.md
    result = subprocess.run([python, "examples.py"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    for line in result.stdout.splitlines():
        assert f"# {line}" in examples or line.startswith(("weights ", "  ")), line
    assert result.stderr == ""  # no warnings of Paddle


def test_without_paddle_the_error_says_what_to_install():
    program = "import sys; sys.modules['paddle'] = None; from common import create_model"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "ImportError: PaddlePaddle is not installed: pip install paddlepaddle==" in result.stderr.splitlines()[-1]

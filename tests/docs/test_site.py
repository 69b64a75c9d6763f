"""The site of the documents."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from tests.helpers.programs import ROOT


def test_every_document_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1].split("\ntheme:")[0]
    documents = [
        file for pattern in ("*.md", "[a-z]*/README*.md", "docs/*.md", "docs/*.ipynb") for file in ROOT.glob(pattern)
    ]
    listed = re.findall(r": (\S+)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(ROOT).as_posix() for path in documents)


@pytest.mark.slow
def test_the_site_has_the_documents_their_sources_and_the_reference(tmp_path):
    mkdocs = ROOT / ".venv-docs" / "bin" / "mkdocs"
    if not mkdocs.is_file():
        pytest.skip("the site's tools are not installed: bash tools/build_site.sh")
    command = [mkdocs, "build", "--strict", "--site-dir", tmp_path]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert 'href="image_classification/#what-a-model-gets-wrong"' in (tmp_path / "index.html").read_text(
        encoding="utf-8"
    )
    assert (tmp_path / "image_classification/configs/ablation/index.html").is_file()
    assert "NUM_CLASSES" in (tmp_path / "image_classification/config.py/index.html").read_text(encoding="utf-8")
    assert 'href="common/training/task/"' in (tmp_path / "reference/index.html").read_text(encoding="utf-8")
    api = (tmp_path / "docs/api/index.html").read_text(encoding="utf-8")
    assert 'href="../../reference/common/pale_transformer/#common.pale_transformer.create_model"' in api
    assert '<html lang="zh-CN"' in (tmp_path / "object_detection/README_cn/index.html").read_text(encoding="utf-8")
    tutorial = (tmp_path / "docs/tutorial.ipynb/index.html").read_text(encoding="utf-8")
    (picture, *_) = re.findall(r'<img [^>]*src="\.\./(tutorial_files/[^"]*)"', tutorial)
    assert (tmp_path / "docs" / picture).is_file()
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        prose = re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
        assert not re.search(r":(class|func|meth|mod|data):(`|<code>)", prose), page
        assert not re.search(r'<(script|img|link rel="stylesheet")[^>]*(src|href)="(https?:)?//', text), page

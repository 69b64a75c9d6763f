"""The site of the documents, built; that every page is listed is checked without building."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.programs import ROOT


def build(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Build with the tools of this checkout, whose hooks and packages are those of the copy."""
    command = [str(ROOT / ".venv-docs/bin/mkdocs"), "build", "--strict"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path):
    """What the site is built from, to be changed."""
    if not (ROOT / ".venv-docs/installed.txt").is_file():
        pytest.skip("the site's tools are not installed: bash tools/build_site.sh")
    copy = tmp_path / "checkout"
    packages = ("common", "image_classification", "semantic_segmentation", "object_detection", "tools")
    for folder in ("docs", "results", *packages):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.pdparams"))
    for file in (*ROOT.glob("*.md"), ROOT / "mkdocs.yml", ROOT / "LICENSE"):
        shutil.copy(file, copy)
    return copy


def test_every_document_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1].split("\ntheme:")[0]
    documents = [
        *ROOT.glob("*.md"),
        *ROOT.glob("[a-z]*/README.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/*.ipynb"),
    ]
    listed = re.findall(r": (\S+)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(ROOT).as_posix() for path in documents)


@pytest.mark.slow
def test_the_site_has_the_documents_their_sources_and_the_reference(checkout):
    result = build(checkout)
    assert result.returncode == 0, result.stderr[-3000:]
    site = checkout / ".site"
    assert 'href="image_classification/#ablations"' in (site / "index.html").read_text(encoding="utf-8")
    assert (site / "image_classification/configs/ablation/index.html").is_file()
    assert "NUM_CLASSES" in (site / "image_classification/config.py/index.html").read_text(encoding="utf-8")
    tutorial = (site / "docs/tutorial.ipynb/index.html").read_text(encoding="utf-8")
    (picture, *_) = re.findall(r'<img [^>]*src="\.\./(tutorial_files/[^"]*)"', tutorial)
    assert (site / "docs" / picture).is_file()
    weights = (site / "reference/common/weights/index.html").read_text(encoding="utf-8")
    assert re.search(r'<a [^>]*href="#common\.weights\.list_weights"[^>]*><code>list_weights</code>', weights)
    separator = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))["config"]["separator"]
    assert list(filter(None, re.split(separator, "(Bonferroni) 消融。"))) == ["Bonferroni", "消", "融"]
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        prose = re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
        assert not re.search(r":(class|func|meth|mod|data):(`|<code>)", prose), page
        assert not re.search(r'<(script|img|link rel="stylesheet")[^>]*(src|href)="(https?:)?//', text), page


@pytest.mark.slow
def test_the_build_stops_at_what_leads_nowhere(checkout):
    links = "[gone](gone.md) [no anchor](paper.md#gone) [no module](../gone.py)"
    (checkout / "docs/new.md").write_text(f"# New\n\n{links}\n")
    module = checkout / "common/layers/linear.py"
    text = module.read_text(encoding="utf-8").replace('["Linear"]', '["Linear", "new"]')
    module.write_text(text + '\n\ndef new() -> None:\n    """See :func:`gone`."""\n')
    result = build(checkout)
    assert result.returncode != 0
    warnings = "\n".join(line for line in result.stderr.splitlines() if line.startswith("WARNING"))
    for told in ("new.md", "gone.md", "#gone", "../gone.py", "target 'gone'"):
        assert told in warnings

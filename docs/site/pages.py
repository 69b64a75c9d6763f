"""The pages of the site, as hooks of MkDocs: the repository's own documents, each at its own path.

Links between documents therefore work on the site and in the repository. Other files and folders that a document links
to, such as configurations and modules, get pages that show them. Notebooks become pages with their stored outputs, and
each module of the packages becomes a page of the reference.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "image_classification", "semantic_segmentation", "object_detection")
DOCUMENTS = ("*.md", "[a-z]*/README*.md")
LANGUAGES = {".py": "python", ".yml": "yaml", ".yaml": "yaml", ".sh": "bash"}
LINK = re.compile(r"(?<=\]\()(?P<target>[^)#\s]+)(?=(?:#[^)]*)?\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation: the page names of notebooks, and the reference."""
    config.nav = _with_page_names(config.nav)
    (reference,) = [part["Reference"] for part in config.nav if "Reference" in part]
    reference.append({"All modules": "reference/index.md"})
    reference += [{package: [{_title(page): page} for page in _pages_of(package)]} for package in PACKAGES]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Move the files of ``docs/`` to their paths in the repository, and add the other pages."""
    docs = Path(config.docs_dir)
    for file in list(files):
        if file.abs_src_path and Path(file.abs_src_path).is_relative_to(docs):
            files.remove(file)
            if (source := Path(file.abs_src_path)).suffix == ".ipynb":
                _add_notebook(files, config, source)
            elif docs / "site" not in source.parents:
                files.append(File.generated(config, _name(source), abs_src_path=str(source)))
    for pattern in DOCUMENTS:
        for source in sorted(ROOT.glob(pattern)):
            if source.parent != docs:
                files.append(File.generated(config, _name(source), abs_src_path=str(source)))
    files.append(File.generated(config, "reference/index.md", content=_index()))
    for package in PACKAGES:
        for page in _pages_of(package):
            module = ".".join(PurePosixPath(page).with_suffix("").parts[1:])
            files.append(File.generated(config, page, content=f"---\ntitle: {module}\n---\n\n::: {module}\n"))
    for file in list(files.documentation_pages()):
        for match in LINK.finditer(file.content_string):
            if source := _shown_source(match["target"], file.src_uri, files):
                _add_source(files, config, source)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to notebooks, sources and folders to their pages."""

    def rewrite(match: re.Match[str]) -> str:
        target = match["target"]
        source = _resolve(target, page.file.src_uri)
        if source and _in_reference(source):
            return "../" * page.file.src_uri.count("/") + f"reference/{_name(source)[:-3]}.md"
        if source and (source.suffix == ".ipynb" or _shown_source(target, page.file.src_uri, files)):
            return target.rstrip("/") + _page_name(source)[len(_name(source)) :]
        return target

    return LINK.sub(rewrite, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Tell browsers the language of Chinese pages, which decides the shapes of their characters."""
    return output.replace('<html lang="en"', '<html lang="zh-CN"') if page.file.src_uri.endswith("_cn.md") else output


def _name(path: Path) -> str:
    """A path relative to the repository, with slashes."""
    return path.relative_to(ROOT).as_posix()


def _page_name(source: Path) -> str:
    return f"{_name(source)}/index.md" if source.is_dir() else f"{_name(source)}.md"


def _with_page_names(nav: Any) -> Any:
    if isinstance(nav, list):
        return [_with_page_names(item) for item in nav]
    if isinstance(nav, dict):
        return {title: _with_page_names(item) for title, item in nav.items()}
    return f"{nav}.md" if nav.endswith(".ipynb") else nav


def _pages_of(package: str) -> list[str]:
    """The reference pages of one package: its modules except the launcher, which has no public names."""
    modules = sorted(file for file in (ROOT / package).rglob("*.py") if not file.stem.startswith("__"))
    return [f"reference/{_name(file)[:-3]}.md" for file in modules if file.stem != "main_multi_gpu"]


def _title(page: str) -> str:
    """The name of a module, relative to its package."""
    return ".".join(PurePosixPath(page).with_suffix("").parts[2:])


def _index() -> str:
    """The page that lists the modules of all packages with the first sentence of their docstrings."""
    lines = ["# All modules", "", "[Public API](../docs/api.md) has the names that other projects use."]
    for package in PACKAGES:
        lines += ["", f"## {package}", "", "| module | content |", "|--------|---------|"]
        for page in _pages_of(package):
            docstring = ast.get_docstring(
                ast.parse((ROOT / page[len("reference/") : -3]).with_suffix(".py").read_text())
            )
            first = (docstring or "").partition("\n\n")[0].replace("\n", " ")
            summary = re.sub(r":\w+:(?=`)", "", first)  # without roles
            lines.append(f"| [{_title(page)}]({page[len('reference/') :]}) | {summary} |")
    return "\n".join(lines) + "\n"


def _in_reference(source: Path) -> bool:
    return _name(source).startswith("common/") and f"reference/{_name(source)[:-3]}.md" in _pages_of("common")


def _resolve(target: str, page: str) -> Path | None:
    """The file or folder of the repository that a page links to, if there is one."""
    if "://" in target:
        return None
    path = (ROOT / page).parent.joinpath(target).resolve()
    return path if path.exists() and path.is_relative_to(ROOT) else None


def _shown_source(target: str, page: str, files: Files) -> Path | None:
    """The linked file or folder if it needs a page that shows it, since it is not on the site."""
    source = _resolve(target, page)
    if not source or source.suffix == ".ipynb" or _in_reference(source) or files.get_file_from_path(_name(source)):
        return None
    return source


def _add_source(files: Files, config: MkDocsConfig, source: Path) -> None:
    """Add the page that shows a text file or lists a folder, unless it exists."""
    name = _page_name(source)
    if files.get_file_from_path(name):
        return
    title = f"---\nsearch:\n  exclude: true\n---\n\n# {_name(source)}\n\n"
    if source.is_dir():
        children = sorted(child for child in source.iterdir() if child.is_file())
        on_site = [files.get_file_from_path(_name(child)) is not None for child in children]
        names = [child.name if found else f"{child.name}.md" for child, found in zip(children, on_site, strict=True)]
        listing = "\n".join(f"- [{child.name}]({name})" for child, name in zip(children, names, strict=True))
        page = File.generated(config, name, content=f"{title}{listing}\n", inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(page)
        for child, found in zip(children, on_site, strict=True):
            if not found:
                _add_source(files, config, child)
    else:
        text = source.read_text(encoding="utf-8")
        content = f"{title}````{LANGUAGES.get(source.suffix, 'text')}\n{text}\n````\n"
        files.append(File.generated(config, name, content=content, inclusion=InclusionLevel.NOT_IN_NAV))


def _add_notebook(files: Files, config: MkDocsConfig, source: Path) -> None:
    """Add the page of a notebook with its stored outputs, and its images."""
    folder = f"{source.stem}_files"
    text, resources = MarkdownExporter(preprocessors=[CoalesceStreamsPreprocessor(enabled=True)]).from_notebook_node(
        nbformat.read(source, 4), {"output_files_dir": folder, "unique_key": source.stem}
    )
    files.append(File.generated(config, _page_name(source), content=text))
    for name, picture in resources["outputs"].items():
        files.append(File.generated(config, f"{_name(source.parent)}/{name}", content=picture))

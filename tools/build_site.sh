#!/usr/bin/env bash
# Builds the site of the documents in .site. It fails if a link or an anchor is broken, mkdocs.yml does not list a
# document, or a docstring does not match its function.
#
#     bash tools/build_site.sh
#     .venv-docs/bin/mkdocs serve    # live preview
#
# It installs the extra "docs" of pyproject.toml into .venv-docs. PaddlePaddle is not needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=.venv-docs/bin/python
if ! cmp --silent pyproject.toml .venv-docs/pyproject.toml || ! "$python" -c "" 2>/dev/null; then
    base=.venv/bin/python
    [[ -x $base ]] || base=python3
    "$base" -m venv --clear .venv-docs
    "$python" -m pip install --quiet --disable-pip-version-check --no-input -e ".[docs]"
    cp pyproject.toml .venv-docs/
fi
NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
echo "The site is in $PWD/.site: python3 -m http.server --directory .site"

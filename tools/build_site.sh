#!/usr/bin/env bash
# Builds the site of the documents in .site, and stops at a link or an anchor that leads nowhere, a document that
# mkdocs.yml does not list, and a docstring that is not what it describes.
#
#     bash tools/build_site.sh
#     .venv-docs/bin/mkdocs serve    # then, while writing
#
# Its tools are in .venv-docs, apart from what the project runs on; PaddlePaddle is not needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=.venv-docs/bin/python
if ! cmp --silent requirements-docs.txt .venv-docs/installed.txt || ! "$python" -c "" 2>/dev/null; then
    base=.venv/bin/python
    [[ -x $base ]] || base=python3
    "$base" -m venv --clear .venv-docs
    "$python" -m pip install --quiet --disable-pip-version-check --no-input -r requirements-docs.txt
    cp requirements-docs.txt .venv-docs/installed.txt
fi
NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
echo "The site is in $PWD/.site: python3 -m http.server --directory .site"

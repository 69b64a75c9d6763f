#!/usr/bin/env bash
# Creates .venv in the root of the repository with the pinned requirements, and downloads the data of the first examples.
#
#     bash tools/setup.sh                # CPU
#     bash tools/setup.sh --gpu          # GPU: the build for the driver and the oldest card, as nvidia-smi tells them
#     bash tools/setup.sh --gpu cu126    # GPU: the given build, one of cu118, cu126, cu129, cu130 and pypi
#     PYTHON=/path/to/python3.12 bash tools/setup.sh
#
# docs/gpu.md describes the builds. It skips the installation if the requirements and the Python version have not changed since the last run.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 1
}

# A relative PYTHON is relative to the caller's directory.
[[ ${PYTHON:-} == */* && $PYTHON != /* ]] && PYTHON=$PWD/$PYTHON
cd "$(dirname "${BASH_SOURCE[0]}")/.."

requirements=requirements.txt
extras=dev,export
supported="3.10 3.11 3.12 3.13"
paddle=() # arguments for pip of a GPU build; requirements.txt has the CPU build

# Prints the newest build for the driver and the oldest card, or nothing if they are unknown.
detect_build() {
    local report capability cuda=0
    report=$(nvidia-smi 2>/dev/null) || return 0
    [[ $report =~ CUDA\ Version:\ *([0-9]+)\.([0-9]+) ]] && cuda=$((BASH_REMATCH[1] * 100 + BASH_REMATCH[2]))
    while read -r capability; do
        # CUDA 13 has no code for cards below 7.5; Paddle's table has CUDA 11 for those below 8.0.
        [[ $capability == [5-7].* && $cuda -ge 1108 ]] && cuda=1108
    done < <(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null)
    if ((cuda >= 1300)); then
        echo cu130
    elif ((cuda >= 1209)); then
        echo cu129
    elif ((cuda >= 1200)); then
        echo cu126 # NVIDIA: a driver for CUDA 12.0 or newer runs programs of any 12.x
    elif ((cuda >= 1108)); then
        echo cu118
    fi
}

case "$#,${1:-}" in
0,) ;;
1,--gpu | 2,--gpu)
    requirements=requirements-gpu.txt
    build=${2:-$(detect_build)}
    case "$build" in
    cu118 | cu126 | cu129 | cu130)
        [[ $(<requirements.txt) =~ paddlepaddle==([0-9.]+) ]]
        paddle=("paddlepaddle-gpu==${BASH_REMATCH[1]}" -i "https://www.paddlepaddle.org.cn/packages/stable/$build/")
        ;;
    pypi)
        paddle=("paddlepaddle-gpu==2.6.2")
        extras=dev                 # without export: paddle2onnx 2.1.0 needs PaddlePaddle 3
        supported="3.10 3.11 3.12" # of paddlepaddle-gpu 2.6.2
        ;;
    "") fail "nvidia-smi shows no CUDA version from 11.8 on: give a build, as in --gpu cu126 (docs/gpu.md)" ;;
    *) fail "unknown build '$build': give --gpu cu118, cu126, cu129, cu130 or pypi (docs/gpu.md)" ;;
    esac
    ;;
*) fail "unknown arguments '$*': tools/setup.sh takes --gpu, --gpu BUILD or nothing" ;;
esac
venv_python=.venv/bin/python

# Prints the version, such as 3.11, or nothing if it does not run (pyenv has commands on PATH that only print a hint).
version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

is_supported() {
    [[ -n $1 && " $supported " == *" $1 "* ]]
}

# ---- selection of Python
if [[ -n ${PYTHON:-} ]]; then
    python=$PYTHON
    version=$(version_of "$python")
    [[ -n $version ]] || fail "PYTHON=$python does not run: give the path of a Python ${supported// /, }"
    is_supported "$version" || fail "PYTHON=$python is Python $version: supported are ${supported// /, }"
else
    python=
    for candidate in "$venv_python" python3 python3.13 python3.12 python3.11 python3.10; do
        version=$(version_of "$candidate")
        if is_supported "$version"; then
            python=$candidate
            break
        fi
    done
    [[ -n $python ]] || fail "no supported Python on PATH: install one of ${supported// /, }, or set PYTHON to its path"
fi
echo "== Python $version ($python)"

# ---- .venv
stamp=.venv/setup-stamp
wanted="python $version $(cat pyproject.toml "$requirements" requirements-toolkits.txt | cksum) ${paddle[*]}"
if [[ $(version_of "$venv_python") == "$version" && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    echo "== .venv: already set up"
else
    rm -f "$stamp"
    if [[ $(version_of "$venv_python") != "$version" ]] || ! "$venv_python" -m pip --version >/dev/null 2>&1; then
        # Debian has ensurepip in a separate package.
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$python has no venv or ensurepip: on Debian and Ubuntu, apt-get install python$version-venv"
        echo "== .venv: creating"
        "$python" -m venv --clear .venv || fail "$python cannot create $PWD/.venv: see the message above"
    fi

    echo "== .venv: installing ${paddle[*]} $requirements and the extras $extras (a few minutes; the CPU build downloads 280 MB)"
    log=.venv/setup.log
    install() {
        "$venv_python" -m pip install --quiet --disable-pip-version-check --no-input "$@" >"$log" 2>&1 || {
            tail -n 5 "$log" >&2
            fail "pip cannot install $*: check the network or PIP_INDEX_URL; pip's messages are in $log"
        }
    }
    # The builds have the same files; those for different CUDA versions even have the same name and version.
    "$venv_python" -m pip uninstall --quiet --yes paddlepaddle-gpu ${paddle:+paddlepaddle} >"$log" 2>&1 || true
    [[ -z ${paddle:-} ]] || install "${paddle[@]}"
    install -r "$requirements" -e ".[$extras]"
    install --no-deps -r requirements-toolkits.txt

    echo "== .venv: importing paddle"
    if ! "$venv_python" -c 'import paddle' >"$log" 2>&1; then
        if grep -q 'libgomp\.so' "$log"; then
            fail "paddle needs the system library libgomp: apt-get install libgomp1 (Debian, Ubuntu)," \
                "dnf install libgomp (Fedora)"
        fi
        fail "paddle cannot be imported ($(tail -n 1 "$log")): the whole message is in $log"
    fi
    echo "$wanted" >"$stamp"
fi

# ---- data of the first examples
echo "== demo data"
"$venv_python" -m common.demo_data mnist5k dsb_nuclei

echo
echo "Ready. Next, in $PWD:"
echo "    $venv_python image_classification/main_multi_gpu.py"

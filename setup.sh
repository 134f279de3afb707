#!/bin/sh
# Makes .venv with everything polyarm needs, at the versions of pins.txt, and a Vulkan driver in it where none draws.
# Needs Python 3.12; uses uv, else pip.
set -eu
cd "$(dirname "$0")"

runs_312() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; }

find_python() {
    # a version manager's shim may exist and not run: an interpreter counts only if it answers
    for p in "${PYTHON:-}" python3.12 python3 python \
        "$HOME"/.pyenv/versions/3.12*/bin/python "$HOME"/.asdf/installs/python/3.12*/bin/python \
        "$HOME"/.local/share/uv/python/cpython-3.12*/bin/python3.12 "$HOME"/.local/share/mise/installs/python/3.12*/bin/python \
        "$HOME"/miniconda3/bin/python "$HOME"/miniforge3/bin/python /opt/homebrew/bin/python3.12 /usr/local/bin/python3.12; do
        if [ -n "$p" ] && runs_312 "$p"; then echo "$p"; return; fi
    done
    return 1
}

if ! runs_312 .venv/bin/python; then
    if ! python=$(find_python); then
        echo "polyarm needs Python 3.12 and found none that runs." >&2
        echo "Install it (apt install python3.12 python3.12-venv | brew install python@3.12 | pyenv install 3.12 | uv python install 3.12)," >&2
        echo "or name one: make setup PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
    echo "making .venv with $python"
    rm -rf .venv
    "$python" -m venv .venv || { echo "$python cannot make a virtual environment: install its venv package (python3.12-venv)" >&2; exit 1; }
fi

want=$(cat pyproject.toml pins.txt setup.sh | cksum)
is() { [ "$(cat ".venv/$1" 2>/dev/null || true)" = "$want" ]; }

install() {
    export UV_PYTHON_DOWNLOADS=never
    if command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1; then uv=uv
    elif .venv/bin/python -m pip install -q uv 2>/dev/null && .venv/bin/uv --version >/dev/null 2>&1; then uv=.venv/bin/uv
    else uv=; fi
    echo "installing polyarm and what it needs (several GB, minutes on a slow line)"
    if [ -n "$uv" ]; then
        "$uv" pip install -q --compile-bytecode --python .venv/bin/python -c pins.txt -e '.[dev]'
    else
        .venv/bin/python -m pip install -q -c pins.txt -e '.[dev]'
    fi
    echo "$want" > .venv/.polyarm
}

is .polyarm || install
# only SAPIEN's worlds need it: it says what is missing, and is tried again at the next set-up until it drew
is .polyarm-draws || ! .venv/bin/python -m polyarm.sim.sapien.swiftshader || echo "$want" > .venv/.polyarm-draws

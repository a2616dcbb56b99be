#!/bin/sh
# Prints the path of a Python 3.12 that can make a virtual environment: the one that is given, else
# one on PATH or of a version manager. Exits with 2 where there is none.
#
# Each is run: a version manager puts a python3.12 on PATH that may refuse to start.

version=3.12

works() {
    "$1" -c "import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 12))" 2> /dev/null
}

if [ -n "$1" ]; then
    works "$1" && command -v "$1" && exit
    echo "error: PYTHON=$1 is no Python $version with venv: name another, or none." >&2
    exit 2
fi
for python in "python$version" \
    "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version"*/bin/python \
    "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}/cpython-$version"*/bin/python \
    "${ASDF_DATA_DIR:-$HOME/.asdf}/installs/python/$version"*/bin/python \
    "${CONDA_PREFIX:-/opt/conda}/bin/python" \
    python3; do
    works "$python" && command -v "$python" && exit
done
echo "error: no Python $version with venv was found: install one (uv python install $version," \
    "pyenv install $version, apt-get install python$version-venv) or name it with" \
    "PYTHON=/path/to/python$version." >&2
exit 2

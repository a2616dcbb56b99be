#!/bin/sh
# Prints the path of a Python 3.12 that can make a virtual environment: the one that is given, else
# one on PATH or of a version manager. Exits with 2 where there is none.
#
# Each is run: a version manager puts a python3.12 on PATH that may refuse to start.

version=3.12

works() {
    "$1" -c "import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 12))" 2> /dev/null
}

end_with() {
    works "$1" && command -v "$1" && exit
}

on_path() { # every one of the name, not the first alone
    rest=$PATH:
    while [ -n "$rest" ]; do
        directory=${rest%%:*} rest=${rest#*:}
        end_with "${directory:-.}/$1"
    done
}

if [ -n "$1" ]; then
    end_with "$1"
    echo "error: PYTHON=$1 is no Python $version with venv: name another, or none." >&2
    exit 2
fi
on_path "python$version"
for python in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version"*/bin/python \
    "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}/cpython-$version"*/bin/python \
    "${ASDF_DATA_DIR:-$HOME/.asdf}/installs/python/$version"*/bin/python \
    "${CONDA_PREFIX:-/opt/conda}/bin/python"; do
    end_with "$python"
done
on_path python3
echo "error: no Python $version with venv was found: install one (uv python install $version," \
    "pyenv install $version, apt-get install python$version-venv) or name it with" \
    "PYTHON=/path/to/python$version." >&2
exit 2

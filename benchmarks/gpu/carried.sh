#!/usr/bin/env bash
# Runs parts of the GPU proof on a machine without network, with what carry.sh put into FOLDER.
#
#   benchmarks/gpu/carried.sh FOLDER [WORD ...]
set -euo pipefail
folder=$(realpath "$1")
shift
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$folder"/*.whl
tar -xJf "$folder"/te*.tar.xz -C "$site"
PYTHONPATH=$site PYTHONUNBUFFERED=1 python3 -m benchmarks.gpu "$@"

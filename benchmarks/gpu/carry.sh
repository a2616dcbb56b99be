#!/usr/bin/env bash
# Prepares what a machine without network needs for `make gpu`: wheels of Megatron-Core and pydantic,
# and a small Transformer Engine, built here for Python 3.12, torch 2.11.0+cu130 and sm_90 (H100,
# H200). Neither a GPU nor nvcc is needed. The machine itself must have torch, triton, transformers,
# numpy, numba, einops, onnx and onnxscript.
#
#   benchmarks/gpu/carry.sh [FOLDER]     (default .gpu; about 28 MB)
#
# then, there: benchmarks/gpu/carried.sh FOLDER first graph speed
#
# PYTHON  a Python 3.12. If it has no torch of the right version, a virtual
#         environment with one is made in $WORK (some GB).
# WORK    scratch folder, emptied but for the environment (default ./te_build)
# JOBS    parallel compiler runs, about 2 GB of memory each (default 2)
#
# Import torch before transformer_engine, so that torch's own CUDA libraries are found, and don't
# set LD_BIND_NOW: the core library names a cuBLASLt function that is newer than torch's cuBLASLt.
set -euo pipefail

TE=2.20.2
TORCH=2.11.0
CUDA=13.0
PYTHON=${PYTHON:-python3.12}
JOBS=${JOBS:-2}
WORK=$(realpath -m "${WORK:-te_build}")
FOLDER=$(realpath -m "${1:-.gpu}")
OUTPUT=$FOLDER/te${TE//./}_sm90_cp312.tar.xz
MEGATRON=$(sed -n 's/^megatron-core==//p' "$(dirname "$0")/../../requirements/cpu.txt")

mkdir -p "$WORK" "$FOLDER"
cd "$WORK"
rm -rf download core ext headers obj site check

# 1. A Python with torch (its wheels bring most CUDA headers) and with what
#    Transformer Engine imports.
if ! "$PYTHON" -c "import torch; assert torch.__version__.split('+')[0] == '$TORCH'" 2>/dev/null; then
    [ -x venv/bin/python ] || "$PYTHON" -m venv venv
    PYTHON=$WORK/venv/bin/python
    "$PYTHON" -m pip install -q "torch==$TORCH" "setuptools<82" wheel packaging \
        numpy einops onnx onnxscript pydantic
fi
"$PYTHON" -c "import sys, torch; assert sys.version_info[:2] == (3, 12) and torch.version.cuda == '$CUDA'"
packages=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
python_include=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')

"$PYTHON" -m pip download -q --no-deps --only-binary :all: -d "$FOLDER" "megatron-core==$MEGATRON"
"$PYTHON" -m pip download -q --only-binary :all: -d "$FOLDER" pydantic

# 2. Transformer Engine's three packages, and the CUDA headers that torch's
#    wheels lack.
"$PYTHON" -m pip download -q --no-deps -d download \
    "transformer_engine==$TE" "transformer_engine_cu13==$TE"
"$PYTHON" -m pip download -q --no-deps --no-build-isolation -d download \
    --no-binary transformer_engine_torch "transformer_engine_torch==$TE"
"$PYTHON" -m pip install -q --no-deps --target headers \
    "nvidia-cuda-crt==$CUDA.*" "nvidia-cuda-cccl==$CUDA.*"
unzip() { "$PYTHON" -m zipfile -e "$1" "$2"; }
unzip download/transformer_engine-$TE-*.whl site
unzip download/transformer_engine_cu13-$TE-*.whl core
mkdir ext
tar -xzf download/transformer_engine_torch-$TE.tar.gz -C ext --strip-components=1

# 3. The torch extension, plain C++.
#    pybind.h asks pybind11 for detailed error messages, which adds a member to
#    pybind11::arg_v, but only where it's included first: in two of the files.
#    The layouts differ then from file to file, and where the compiler doesn't
#    inline as much as with -O3 the import ends in a double free.
#    The order of the include folders matters: two of them have a common.h.
sed -i '/^#define PYBIND11_DETAILED_ERROR_MESSAGES/d' ext/csrc/pybind.h
mkdir obj
export CXXFLAGS="-std=c++17 -O1 -g0 -w -fPIC -fvisibility=hidden -DNDEBUG
    -DTORCH_EXTENSION_NAME=transformer_engine_torch -DTORCH_API_INCLUDE_EXTENSION_H
    -Iext/common_headers -Iext/common_headers/common
    -Iext/common_headers/common/include -Iext/csrc
    -isystem $packages/torch/include
    -isystem $packages/torch/include/torch/csrc/api/include
    -isystem $packages/nvidia/cu13/include -isystem $packages/nvidia/cudnn/include
    -isystem $packages/nvidia/nccl/include
    -isystem headers/nvidia/cu13/include -isystem headers/nvidia/cu13/include/cccl
    -isystem $python_include"
find ext/csrc -name '*.cpp' -printf '%s %p\n' | sort -rn | cut -d' ' -f2 |
    xargs -P "$JOBS" -I{} bash -c 'o=${1#ext/csrc/}; g++ $CXXFLAGS -c "$1" -o "obj/${o//\//_}.o" || exit 255' _ {}

# 4. The packages as pip would lay them out, without the JAX part, and without
#    expert parallelism over NCCL, which needs a newer NCCL than torch's.
lib=site/transformer_engine/wheel_lib
rm -rf site/transformer_engine/jax
mkdir "$lib"
g++ -shared -s -o "$lib/transformer_engine_torch.cpython-312-x86_64-linux-gnu.so" obj/*.o \
    -L"$packages/torch/lib" -L"$packages/nvidia/cu13/lib" -Wl,--no-as-needed \
    -lc10 -ltorch -ltorch_cpu -ltorch_python -ltorch_cuda -lc10_cuda -l:libcudart.so.13
cp -r core/transformer_engine_cu13-$TE.dist-info site/
info=site/transformer_engine_torch-$TE.dist-info
mkdir "$info"
cp ext/PKG-INFO "$info/METADATA"
cp ext/LICENSE "$info/"
printf 'Wheel-Version: 1.0\nGenerator: build.sh\nRoot-Is-Purelib: false\nTag: cp312-cp312-linux_x86_64\n' \
    > "$info/WHEEL"
touch "$info/RECORD"

# 5. The core library, with the kernels of every GPU but sm_90 (90a too) zeroed
#    in place: the file keeps its layout, and the zeros vanish under xz.
"$PYTHON" - core/transformer_engine/wheel_lib/libtransformer_engine.so \
    "$lib/libtransformer_engine.so" <<'PY'
import struct
import sys

MAGIC = struct.pack("<I", 0xBA55ED50)
data = bytearray(open(sys.argv[1], "rb").read())
kept = zeroed = pos = 0
while (pos := data.find(MAGIC, pos)) >= 0:
    header_size, size = struct.unpack_from("<HQ", data, pos + 6)
    if header_size != 16:  # not a container: the magic number in code
        pos += 4
        continue
    entry, pos = pos + header_size, pos + header_size + size
    while entry < pos:
        kind, _, header_size, size = struct.unpack_from("<HHIQ", data, entry)
        (arch,) = struct.unpack_from("<I", data, entry + 28)
        payload = entry + header_size
        entry = payload + size
        if kind == 2 and arch == 90:  # 1 is PTX, 2 is machine code
            kept += 1
        else:
            data[payload:entry] = bytes(size)
            zeroed += 1
    assert entry == pos, "container not understood"
assert kept and zeroed
print(f"kernels: {kept} entries kept, {zeroed} zeroed")
open(sys.argv[2], "wb").write(data)
PY
strip "$lib/libtransformer_engine.so"

# 6. Pack, and import what was packed.
tar -C site --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf - . |
    xz -T1 --x86 --lzma2=preset=6,dict=64MiB > "$OUTPUT"
mkdir check
tar -xJf "$OUTPUT" -C check
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$WORK/check "$PYTHON" -c '
import torch, transformer_engine.pytorch, transformer_engine_torch as ext
print(transformer_engine.__version__, transformer_engine.__file__, ext.__file__)'
ls -l "$OUTPUT"

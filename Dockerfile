# The GPU stack with one set of pins, that of requirements/cuda.txt.
#
#   docker build -t alp-megatron .
#   docker build -t alp-megatron --build-arg APEX_COMMIT=<commit of NVIDIA/apex> .    # apex as well
#   docker run --gpus all --ipc=host -v /data:/data alp-megatron train CONFIG model.path=/data/MODEL
#
# This file was never built, for want of a machine with Docker, a GPU and NVIDIA's packages. Checked
# were: hadolint 2.15.1; that every path copied exists; the pins against pyproject.toml and
# requirements/cpu.txt; that pip's resolver (a dry run, Linux x86-64, Python 3.12) finds all of them
# and that they go together, with the CUDA libraries that torch asks for. Left out of that:
# Transformer Engine's PyTorch part, which is compiled here.

FROM nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04

# The compiler stays: Triton and vLLM compile kernels at run time.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        build-essential git ninja-build python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1
RUN python3.12 -m venv "$VIRTUAL_ENV"

# torch first: Transformer Engine (and apex) are compiled against the one that is installed. A change
# of the project's own files leaves all layers down to here in Docker's cache.
WORKDIR /opt/alp-megatron
COPY requirements/cuda.txt requirements/cuda.txt
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install "$(grep '^torch==' requirements/cuda.txt)" setuptools wheel pybind11 ninja
ARG MAX_JOBS=8
RUN --mount=type=cache,target=/root/.cache/pip \
    MAX_JOBS="$MAX_JOBS" pip install --no-build-isolation -r requirements/cuda.txt

# Megatron-Core runs without apex; it adds fused norms and gradient accumulation to the layers that
# are not Transformer Engine's. It has no releases on PyPI, hence a commit.
ARG APEX_COMMIT=""
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "$APEX_COMMIT" ]; then \
        APEX_CPP_EXT=1 APEX_CUDA_EXT=1 MAX_JOBS="$MAX_JOBS" pip install --no-build-isolation \
            "apex @ git+https://github.com/NVIDIA/apex@$APEX_COMMIT"; \
    fi

COPY pyproject.toml README.md LICENSE ./
COPY alp_megatron alp_megatron
COPY benchmarks benchmarks
COPY configs configs
COPY conversion conversion
COPY launch launch
RUN pip install --no-cache-dir --no-deps --editable . \
    && useradd --create-home --uid 10001 alp \
    && mkdir /runs \
    && chown alp:alp /runs

# Run directories named in configurations are relative to where the command is given.
USER 10001
WORKDIR /runs
RUN ln -s /opt/alp-megatron/configs configs

# Exit code 2 where neither path can run, as without a GPU.
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s \
    CMD ["alp-megatron", "doctor"]
ENTRYPOINT ["alp-megatron"]
CMD ["doctor"]

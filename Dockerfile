# One image for every node of a cluster, the head included: docker build -t qwenlong-l1 .
# With FlashAttention-3 for Hopper cards, whose kernels take an hour or more to compile: --build-arg FLASH_ATTENTION=v2.8.3
# The driver stays on the host: R580 or newer, with the NVIDIA Container Toolkit.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

# gcc and Python's headers: Triton and FlashInfer compile kernels when an engine starts. rdma-core: NCCL over InfiniBand.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        build-essential ca-certificates git iproute2 python3.12 python3.12-dev python3.12-venv rdma-core \
    && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /opt/qwenlong
ENV PATH=/opt/qwenlong/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# The packages come before the code, so that a change of the code does not install them again. DS_BUILD_OPS=0: no kernel
# of DeepSpeed is used.
WORKDIR /opt/qwenlong-l1
COPY requirements-gpu.lock ./
RUN DS_BUILD_OPS=0 pip install --no-deps -r requirements-gpu.lock

# Torch sends its flash attention to this module where it is there (learner.attention in docs/recipe.md).
ARG FLASH_ATTENTION=
ARG MAX_JOBS=8
RUN if [ -n "$FLASH_ATTENTION" ]; then \
        git clone --depth 1 --branch "$FLASH_ATTENTION" --recurse-submodules --shallow-submodules \
            https://github.com/Dao-AILab/flash-attention /tmp/flash-attention \
        && pip install wheel \
        && MAX_JOBS=$MAX_JOBS pip install --no-deps --no-build-isolation /tmp/flash-attention/hopper \
        && rm -rf /tmp/flash-attention; \
    fi

COPY . .
RUN pip install --no-deps -e . && qwenlong --help >/dev/null

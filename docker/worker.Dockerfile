# A worker, and `gklbench train`, `evaluate` and `verify`: the API's image and what runs jobs.
#
# No CUDA image below it: PyTorch's wheel brings its own CUDA libraries, and the driver is the host's, which the NVIDIA
# container toolkit mounts. A second set of libraries would be gigabytes that nothing loads.
ARG PYTHON_IMAGE=python:3.13.14-slim-trixie

FROM ${PYTHON_IMAGE} AS build
ARG UV_VERSION=0.13.9
# Copies, because a hard link cannot leave the cache's mount; compiled here, because the root is read-only later.
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/gklbench
# pip's is the one installation that no lock names: uv itself.
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore "uv==${UV_VERSION}" \
    && python -m venv --without-pip /opt/gklbench
WORKDIR /build
# This layer, of gigabytes, is built anew when dependencies change, and not when the source does.
COPY pyproject.toml requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install -r pyproject.toml --extra worker --extra s3 --extra otel -c requirements.lock
COPY README.md LICENSE ./
COPY app app
COPY gkl gkl
COPY worker worker
# What every result that is measured in this image says of its code.
ARG REVISION=unknown
RUN printf '%s\n' "${REVISION}" > gkl/REVISION
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --no-deps --build-constraints requirements.lock .
# Which packages the image has, and their licenses.
COPY docker/notice.py ./
RUN /opt/gklbench/bin/python notice.py > /opt/gklbench/NOTICE

FROM ${PYTHON_IMAGE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="GKL Bench: worker" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# `compute.compile` in a spec needs a C++ compiler. Debian keeps only the newest version of a package, so none is named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
# The number is the one in the compose files. A new named volume takes the owner of the folder that it covers.
RUN groupadd --gid 10001 gklbench \
    && useradd --uid 10001 --gid gklbench --no-log-init --home-dir /var/lib/gklbench --shell /usr/sbin/nologin gklbench \
    && install --directory --owner gklbench --group gklbench --mode 0750 /var/lib/gklbench
COPY --from=build /opt/gklbench /opt/gklbench
# `utility` brings nvidia-smi, by which a worker says what GPU it has. No GPU unless one is asked for: where the host gives
# every container its GPUs by default, workers for the processor would take them too.
# Compiled kernels are loaded from where they are cached: /tmp is mounted so that nothing there can be run.
ENV PATH=/opt/gklbench/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/gklbench \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/gklbench/cache/inductor \
    TRITON_CACHE_DIR=/var/lib/gklbench/cache/triton \
    NVIDIA_VISIBLE_DEVICES=void \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    GKLBENCH_DATA_DIR=/var/lib/gklbench \
    GKLBENCH_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/gklbench
# Asks the run to save what it has and hands its job back, for which it needs GKLBENCH_STOP_GRACE_SECONDS.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s --retries=3 CMD ["gklbench", "health", "worker"]
ENTRYPOINT ["gklbench"]
CMD ["worker"]

# The API with its pages, the relay, and every one-shot command. Without PyTorch: jobs run in the worker's image.
#
# No `# syntax=` line: whatever builds this file understands it by itself, and one image less is fetched and trusted.
ARG PYTHON_IMAGE=python:3.13.14-slim-trixie

FROM ${PYTHON_IMAGE} AS build
ARG UV_VERSION=0.13.9
# Copies, because a hard link cannot leave the cache's mount; compiled here, because the root is read-only later.
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/gklbench
# pip's is the one installation that no lock names: uv itself.
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore "uv==${UV_VERSION}" \
    && python -m venv --without-pip /opt/gklbench
WORKDIR /build
# This layer is built anew when dependencies change, and not when the source does.
COPY pyproject.toml requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install -r pyproject.toml --extra server --extra s3 --extra otel -c requirements.lock
COPY README.md LICENSE ./
COPY app app
COPY gkl gkl
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --no-deps --build-constraints requirements.lock .
# Which packages the image has, and their licenses.
COPY docker/notice.py ./
RUN /opt/gklbench/bin/python notice.py > /opt/gklbench/NOTICE

# The documentation as pages. Without PyTorch too: docs/conf.py needs only the names in it.
FROM build AS docs
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install -r pyproject.toml --extra docs -c requirements.lock
COPY docs docs
RUN /opt/gklbench/bin/python -m sphinx -q -b html -d /tmp/doctrees docs /documentation

FROM ${PYTHON_IMAGE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="GKL Bench: API and relay" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# The number is the one in the compose files. A new named volume takes the owner of the folder that it covers.
RUN groupadd --gid 10001 gklbench \
    && useradd --uid 10001 --gid gklbench --no-log-init --home-dir /var/lib/gklbench --shell /usr/sbin/nologin gklbench \
    && install --directory --owner gklbench --group gklbench --mode 0750 /var/lib/gklbench
COPY --from=build /opt/gklbench /opt/gklbench
COPY --from=docs /documentation /opt/gklbench/share/doc/gklbench
ENV PATH=/opt/gklbench/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GKLBENCH_DATA_DIR=/var/lib/gklbench \
    GKLBENCH_DOCS_DIR=/opt/gklbench/share/doc/gklbench \
    GKLBENCH_HOST=0.0.0.0 \
    GKLBENCH_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/gklbench
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 CMD ["gklbench", "health", "api"]
ENTRYPOINT ["gklbench"]
CMD ["serve"]

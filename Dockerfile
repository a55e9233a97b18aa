# syntax=docker/dockerfile:1
#
# orch in a container: docker build -t orch:0.1.0 .
# Then `orch deploy compose` and `orch deploy kubernetes` write what runs it; docs/deploy.md tells the rest.
#
# Another CUDA, for an older driver (the wheels of torch bring libraries of their own, too):
#   --build-arg CUDA=12.8.1 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
# Without torch, for commands that need none: --build-arg TORCH=
ARG CUDA=13.0.1
ARG UBUNTU=24.04

FROM nvidia/cuda:${CUDA}-runtime-ubuntu${UBUNTU} AS python
# No pins of the distribution's packages: their holes are mended by newer ones.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
ARG TORCH=torch
ARG TORCH_INDEX=
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt ./
# torch by its exact pin, and in a layer of its own: it is large, and changes seldom.
RUN python3 -m venv /opt/orch \
    && if [ -n "$TORCH" ]; then \
        /opt/orch/bin/pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"; \
    fi
COPY . ./
RUN /opt/orch/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && /opt/orch/bin/pip install --no-cache-dir -c constraints.txt "$(echo /wheels/gpu_orch-*.whl)[grpc]"

FROM python
LABEL org.opencontainers.image.title="orch" org.opencontainers.image.licenses="Apache-2.0"
# A number, so that Kubernetes can see that it is not root's. Volumes mounted here get their owner from these directories.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/orch --shell /usr/sbin/nologin orch \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/orch /run/orch \
    && install -d -m 0755 /model
COPY --from=build /opt/orch /opt/orch
ENV PATH=/opt/orch/bin:$PATH \
    ORCH_RUNTIME_DIR=/run/orch \
    ORCH_STATE_DIR=/var/lib/orch
WORKDIR /model
USER 10001:10001
EXPOSE 8000
# orch is process 1: it forwards signals to the supervisor, which drains, and reaps what other processes leave behind.
HEALTHCHECK --interval=10s --timeout=10s --retries=3 --start-period=20m CMD ["orch", "status", "--check"]
ENTRYPOINT ["orch"]
# What to serve stands in /model/orch.toml or ORCH_TARGET. Other machines may ask only with a key (`orch keys add`), or
# where ORCH_INSECURE=yes says that this is meant: without either it ends with a line that says so.
CMD ["up", "--http", "0.0.0.0:8000"]

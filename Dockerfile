# syntax=docker/dockerfile:1
#
#   docker build -t fastrcnn .                                                  with NVIDIA's base, runs without a GPU too
#   docker build -t fastrcnn --build-arg BASE=debian:trixie-slim .              a smaller base, for machines without one
#
#   docker run --rm -v "$PWD/data:/app/data" -v "$PWD/outputs:/app/outputs" fastrcnn demo
#   docker run --rm --gpus all --ipc=host -v /data/VOCdevkit:/voc:ro -v "$PWD/data:/app/data" \
#       -v "$PWD/outputs:/app/outputs" fastrcnn train data=voc07 data.root=/voc
#
# --ipc=host      loader processes hand pictures over in shared memory, of which a container has 64 MB; --shm-size=2g does
#                 as well. With runtime.workers=0 neither is needed.
# -v ...outputs   what is written there stays; the container's user is number 1000. Where your own number is another, add
#                 --user "$(id -u):$(id -g)".
# -v ...:ro       your pictures: nothing is ever written to them.
#
# torch's wheel brings the CUDA libraries, so the base need only make the driver known: `base`, not `runtime`, which would
# hold the same libraries a second time.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${BASE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# The heavy packages first: they change seldom, so their layer is kept when the code changes.
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt torch torchvision
COPY pyproject.toml setup.py README.md LICENSE ./
COPY configs configs
COPY fastrcnn fastrcnn
RUN pip install --no-cache-dir --constraint constraints.txt '.[mat,safetensors]'

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/*
RUN (id -un 1000 >/dev/null 2>&1 || useradd --create-home --uid 1000 fastrcnn) \
    && mkdir -p /app/data /app/outputs \
    && chmod -R 0777 /app
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
USER 1000
WORKDIR /app
ENTRYPOINT ["fastrcnn"]
CMD ["--help"]

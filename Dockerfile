# syntax=docker/dockerfile:1
#
#   docker build -t fastrcnn .                                          NVIDIA's base image, also runs without a GPU
#   docker build -t fastrcnn --build-arg BASE=debian:trixie-slim .      a smaller base image, for machines without a GPU
#
#   docker run --rm -v "$PWD/data:/app/data" -v "$PWD/outputs:/app/outputs" fastrcnn demo
#   docker run --rm --gpus all --ipc=host -v /data/VOCdevkit:/voc:ro -v "$PWD/data:/app/data" \
#       -v "$PWD/outputs:/app/outputs" fastrcnn train data=voc07 data.root=/voc
#
# --ipc=host      Data loader workers pass images in shared memory, and a container has only 64 MB of it by default.
#                 --shm-size=2g works too. Neither is needed with runtime.workers=0.
# -v ...outputs   Files written here persist. The user ID in the container is 1000. If your own user ID differs, add
#                 --user "$(id -u):$(id -g)".
# -v ...:ro       Your images. They are mounted read-only, because the program never writes to them.
#
# The base image is `base`, not `runtime`: torch's wheel contains the CUDA libraries, and `runtime` would contain them a
# second time. The base image only has to provide access to the driver.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${BASE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# Install the large packages first. They rarely change, so their layer stays cached when the code changes.
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

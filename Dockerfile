# syntax=docker/dockerfile:1
# docker build -t fastrcnn .
# docker run --rm -v "$PWD/outputs:/work/outputs" -v "$PWD/data:/work/data" fastrcnn demo
# docker run --rm --gpus all --ipc=host -v /data/VOCdevkit:/voc:ro -v "$PWD/outputs:/work/outputs" \
#     -v "$PWD/data:/work/data" fastrcnn train data=voc07 data.root=/voc
# Loader processes hand pictures over in shared memory: give them --ipc=host, or --shm-size=2g.
# The CUDA libraries come with torch's wheel; a plain Python base is enough, on a CPU and on a GPU.
FROM python:3.12-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# The heavy dependencies first: they change seldom, so their layer is kept.
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt torch torchvision
COPY pyproject.toml setup.py README.md LICENSE ./
COPY configs configs
COPY fastrcnn fastrcnn
RUN pip install --no-cache-dir --constraint constraints.txt '.[mat]'

FROM python:3.12-slim-bookworm
RUN useradd --create-home --uid 1000 fastrcnn \
    && mkdir -p /work/outputs /work/data \
    && chown -R fastrcnn /work
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
USER fastrcnn
WORKDIR /work
ENTRYPOINT ["fastrcnn"]
CMD ["--help"]

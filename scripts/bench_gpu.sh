#!/usr/bin/env bash
# What wants a CUDA device. Without a second argument, in less than 8 minutes: the tests marked `gpu`, then RoI pooling,
# the training step and detection against torchvision's parts, with their shares of the device's own ceilings, and 2,000
# steps of a training from files. With "schedule": the paper's 40,000 steps from start to end. Tables go to FOLDER/*.md,
# figures to FOLDER/*.json.
#   scripts/bench_gpu.sh [FOLDER] [schedule]
# Needs the checkout alone, pytest, torch >= 2.11 with torchvision, OpenCV (no contrib modules), tensorboard, and
# hydra-core, omegaconf, pycocotools and defusedxml.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-outputs/bench}"
mkdir -p "$out"
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
    { echo "torch sees no CUDA device here, so there is nothing to measure." >&2; exit 1; }

if [ "${2:-}" = schedule ]; then
    "$python" scripts/bench_schedule.py --json "$out/schedule.json" | tee "$out/schedule.md"
    exit
fi
# Without the options and fixtures that the whole suite wants, and so without its needs.
"$python" -m pytest -o addopts= -p no:cacheprovider --noconftest -q --junitxml="$out/gpu-tests.xml" \
    -m gpu tests/test_gpu.py tests/ops/test_cuda.py
"$python" scripts/bench_roi_pool.py --device cuda --json "$out/roi-pool.json" | tee "$out/roi-pool.md"
"$python" scripts/bench_train.py --device cuda --cases full --repeats 15 --json "$out/training.json" | tee "$out/training.md"
"$python" scripts/bench_detect.py --device cuda --repeats 15 --json "$out/detection.json" | tee "$out/detection.md"
"$python" scripts/bench_schedule.py --iterations 2000 --json "$out/steps.json" | tee "$out/steps.md"

#!/usr/bin/env bash
# Run the tests and benchmarks that need a CUDA device.
#   scripts/bench_gpu.sh [FOLDER] [schedule]
# By default, it runs in less than 8 minutes: the tests marked `gpu`; benchmarks of RoI pooling, the training step and
# detection against torchvision's components and the peak rates of the device; and 2,000 training steps on image files.
# With "schedule", it runs the paper's 40,000 steps instead. Tables are written to FOLDER/*.md, values to FOLDER/*.json.
# The checkout does not have to be installed. Requires pytest, torch >= 2.11 with torchvision, OpenCV (without contrib
# modules), tensorboard, hydra-core, omegaconf, pycocotools and defusedxml.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-outputs/bench}"
mkdir -p "$out"
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
    { echo "bench_gpu.sh: torch finds no CUDA device. Run this script on a machine with a GPU." >&2; exit 1; }

if [ "${2:-}" = schedule ]; then
    "$python" scripts/bench_schedule.py --json "$out/schedule.json" | tee "$out/schedule.md"
    exit
fi
# Skip the options and fixtures of the complete test suite, because they need additional packages.
"$python" -m pytest -o addopts= -p no:cacheprovider --noconftest -q --junitxml="$out/gpu-tests.xml" \
    -m gpu tests/test_gpu.py tests/ops/test_cuda.py
"$python" scripts/bench_roi_pool.py --device cuda --json "$out/roi-pool.json" | tee "$out/roi-pool.md"
"$python" scripts/bench_train.py --device cuda --cases full --repeats 15 --json "$out/training.json" | tee "$out/training.md"
"$python" scripts/bench_detect.py --device cuda --repeats 15 --json "$out/detection.json" | tee "$out/detection.md"
"$python" scripts/bench_schedule.py --iterations 2000 --json "$out/steps.json" | tee "$out/steps.md"

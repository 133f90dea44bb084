#!/usr/bin/env bash
# What wants a CUDA device: the tests marked `gpu`, then the benchmarks of RoI pooling and detection. Results go into the
# folder given.
#   scripts/bench_gpu.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-outputs/bench}"
mkdir -p "$out"
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
    { echo "torch sees no CUDA device here, so there is nothing to measure." >&2; exit 1; }
"$python" -m pytest -m gpu tests/ops --junitxml="$out/gpu-tests.xml"
"$python" scripts/bench_roi_pool.py --device cuda --json "$out/roi-pool.json"
"$python" scripts/bench_detect.py --device cuda --json "$out/detection.json"

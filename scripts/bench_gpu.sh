#!/usr/bin/env bash
# Run the checks and benchmarks that need a CUDA device, in stages.
#
#   scripts/bench_gpu.sh [--out FOLDER] [--pack FOLDER] [--work FOLDER] [--recipe paper|modern] [--device cpu] [STAGE ...]
#
#   stage        limit  what it does
#   correctness   90 s  compares the CUDA kernels with the CPU case by case; then runs the tests marked `gpu`
#   roi-pool      60 s  RoI pooling against torchvision
#   step          60 s  the training step against one composed of torchvision's components
#   detection     60 s  detection of one image, NMS and the head, against the same
#   steps        120 s  2,000 steps of the paper's schedule on image files, with data loading
#   voc07        540 s  trains on VOC2007 and evaluates, with the files in --pack (see scripts/pack_dataset.py)
#
# The default is the first four, which take less than 5 minutes. Each stage writes FOLDER/STAGE.md and FOLDER/STAGE.json
# (default: outputs/bench), which are complete after each row. A stage that fails or exceeds its limit does not stop the
# others. A table of the stages is printed last. LIMIT=seconds in the environment replaces the limits. Data and runs of
# voc07 are in --work (default: FOLDER/work). --device cpu tries the stages without a GPU, with numbers cut down.
#
# The checkout does not have to be installed. Requires pytest, torch >= 2.11 with torchvision, OpenCV (without contrib
# modules), tensorboard, hydra-core, omegaconf, antlr4-python3-runtime 4.9, pycocotools, defusedxml and safetensors.
set -uo pipefail
out=outputs/bench pack="" work="" recipe=paper device=cuda stages=()
while [ $# -gt 0 ]; do
    case "$1" in
        --out | --pack | --work | --recipe | --device)
            [ $# -gt 1 ] || { echo "bench_gpu.sh: $1 needs a value. See --help." >&2; exit 2; }
            declare "${1#--}=$2"
            shift
            ;;
        -h | --help) sed -n '2,22s/^# \{0,1\}//p' "$0"; exit 0 ;;
        correctness | roi-pool | step | detection | steps | voc07) stages+=("$1") ;;
        *) echo "bench_gpu.sh: unknown argument $1. See --help." >&2; exit 2 ;;
    esac
    shift
done
[ ${#stages[@]} -gt 0 ] || stages=(correctness roi-pool step detection)
out="$(realpath -m "$out")" work="$(realpath -m "${work:-$out/work}")" pack="${pack:+$(realpath -m "$pack")}"
cd "$(dirname "$0")/.."
mkdir -p "$out" "$work"
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
repeats=15 iterations=2000 pictures=500 cut=()
if [ "$device" = cuda ]; then
    "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
        { echo "bench_gpu.sh: torch finds no CUDA device. Run this script on a machine with a GPU." >&2; exit 1; }
    workers="runtime.workers=$(($(nproc) > 4 ? $(nproc) - 4 : 1))"
else
    repeats=1 iterations=2 pictures=4 workers=runtime.workers=1
    cut=(solver.iterations=2 data.max_images=4 "data.short_sides=[128]" data.test_short_sides=128)
fi

declare -A limits=([correctness]=90 [roi-pool]=60 [step]=60 [detection]=60 [steps]=120 [voc07]=540)
rows=() failed=0
for stage in "${stages[@]}"; do
    name="$stage" common=(--device "$device") keys=("$workers" "${cut[@]}")
    case "$stage" in
        correctness) command=(check_gpu.py "${common[@]}") ;;
        roi-pool) command=(bench_roi_pool.py "${common[@]}" --repeats $repeats) ;;
        step) command=(bench_train.py "${common[@]}" --repeats $repeats --cases full) ;;
        detection) command=(bench_detect.py "${common[@]}" --repeats $repeats) ;;
        steps) command=(bench_schedule.py --iterations $iterations --pictures $pictures "${keys[@]}") ;;
        voc07)
            name="voc07-$recipe"
            command=(bench_voc07.py "$pack" "$work" --recipe "$recipe" "${keys[@]}")
            ;;
    esac
    limit="${LIMIT:-${limits[$stage]}}"
    begin=$SECONDS
    echo "== $stage (limit: $limit s)"
    timeout --kill-after=30 "$limit" "$python" "scripts/${command[0]}" "${command[@]:1}" --json "$out/$name.json" 2>&1 |
        tee "$out/$name.md"
    status=${PIPESTATUS[0]}
    case $status in
        0) result=passed ;;
        124 | 137) result="out of time" failed=1 ;;
        *) result="failed (status $status)" failed=1 ;;
    esac
    rows+=("| $stage | $result | $((SECONDS - begin)) | $limit |")
    { echo "| stage | result | seconds | limit |"; echo "|---|---|---|---|"; printf '%s\n' "${rows[@]}"; } > "$out/summary.md"
done
cat "$out/summary.md"
exit $failed

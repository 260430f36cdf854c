#!/usr/bin/env bash
# Everything that needs a GPU, in one command of less than ten minutes: build, tests of both GPU backends, benchmarks,
# the sanitizer. Needs nvcc, Python >= 3.10 with torch >= 2.11, Triton >= 3.6, pybind11, ninja, pytest and matplotlib;
# no network.
#
#   bench/gpu.sh [FOLDER]     results and gpu.log go to FOLDER, by default bench/results
#
# PYTHON names the interpreter, GPU_SECONDS the time for all (570), STEPS those to run ("build tests"; default all).
# Wheels of rivals (liger-kernel, trl) in .wheels/, which git ignores, take part.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=$(realpath -m "${1:-bench/results}")
site=$PWD/build/gpu-site
mkdir -p "$out" "$site"
export KDKERNELS_CUDA=1 MPLBACKEND=Agg PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
deadline=$((SECONDS + ${GPU_SECONDS:-570}))
failed=()
: >"$out/gpu.log"

# step NAME SECONDS COMMAND...: all output is kept; a step that fails does not keep the others from running.
step() {
  local name=$1 limit=$2 start=$SECONDS status=0 left=$((deadline - SECONDS))
  shift 2
  [[ -z ${STEPS:-} || " $STEPS " == *" $name "* ]] || return 0
  if ((left <= 5)); then
    echo "$name not run: no time left"
    failed+=("$name")
    return
  fi
  ((limit < left)) || limit=$left
  timeout --signal=INT --kill-after=10 "$limit" "$@" >"$site/log" 2>&1 || status=$?
  printf '== %s\n' "$name" >>"$out/gpu.log"
  cat "$site/log" >>"$out/gpu.log"
  printf '%-12s %4d s  %s\n' "$name" $((SECONDS - start)) "$([ $status = 0 ] && echo passed || echo "failed ($status)")"
  [ $status = 0 ] || { failed+=("$name"); tail -n 40 "$site/log"; }
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || { echo "no NVIDIA driver"; exit 1; }
shopt -s nullglob
wheels=(.wheels/*.whl)
[ ${#wheels[@]} = 0 ] ||
  step wheels 60 "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" "${wheels[@]}"
step build 150 "$python" setup.py build_ext --inplace
step machine 40 "$python" -m kdkernels
workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n 8)
# Of the suite what runs on the device; the rest needs none.
step tests 240 env OMP_NUM_THREADS=2 "$python" -m pytest -q "${workers[@]}" -k "cuda- or on_a_gpu" python_tests
machine=$("$python" -m bench.machine cuda) || machine=gpu
step bench 180 "$python" -m bench.run --device cuda --seconds 0.3 --out "$out/$machine.jsonl"
step report 40 "$python" -m bench.report "$out/$machine.jsonl"
if command -v compute-sanitizer >/dev/null; then
  # Without PyTorch's cache, whose large segments hide an access beyond a tensor's end.
  for tool in memcheck racecheck synccheck; do
    step "$tool" 90 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m bench.sanitize
  done
else
  echo "sanitizer        not run: no compute-sanitizer on the PATH"
fi
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}"; exit 1; }

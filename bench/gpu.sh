#!/usr/bin/env bash
# Everything that needs a GPU, in one command of less than ten minutes: build, tests of both GPU backends, the
# sanitizer, the benchmarks. Needs nvcc, Python >= 3.10 with torch >= 2.11, Triton >= 3.6, pybind11, ninja, pytest and
# matplotlib; no network.
#
#   bench/gpu.sh [FOLDER]     results go to FOLDER, by default bench/results
#
# PYTHON names the interpreter. Wheels of rivals (liger-kernel, trl) in .wheels/, which git ignores, take part.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=$(realpath -m "${1:-bench/results}")
site=$PWD/build/gpu-site
mkdir -p "$out" "$site"
export KDKERNELS_CUDA=1 MPLBACKEND=Agg PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=()

# step NAME SECONDS COMMAND...: its output is kept; a step that fails does not keep the others from running.
step() {
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  timeout --signal=INT --kill-after=20 "$limit" "$@" >"$out/gpu-$name.log" 2>&1 || status=$?
  printf '%-12s %4d s  %s\n' "$name" $((SECONDS - start)) "$([ $status = 0 ] && echo passed || echo "failed ($status)")"
  [ $status = 0 ] || { failed+=("$name"); tail -n 40 "$out/gpu-$name.log"; }
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || { echo "no NVIDIA driver"; exit 1; }
shopt -s nullglob
wheels=(.wheels/*.whl)
[ ${#wheels[@]} = 0 ] || step wheels 60 "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" "${wheels[@]}"
step build 180 "$python" setup.py build_ext --inplace
step machine 60 "$python" -m kdkernels
workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n 8)
step tests 300 "$python" -m pytest -q "${workers[@]}" python_tests
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "$tool" 90 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m bench.sanitize
  done
else
  echo "sanitizer        not run: no compute-sanitizer on the PATH"
fi
step bench 300 "$python" -m bench.run --device cuda --seconds 0.4 --out "$out/$("$python" -m bench.machine cuda).jsonl"
step report 60 "$python" -m bench.report "$out/$("$python" -m bench.machine cuda).jsonl"
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}"; exit 1; }

#!/usr/bin/env bash
# One go on a machine with a GPU and torch: bash benchmarks/gpu/run.sh WHEELS [OUT] [OPTIONS of python -m benchmarks.gpu]
# WHEELS: folder made by `make gpu-wheels`. OUT: folder for the results, default $OUT, else gpu-results.
# PYTHON: the interpreter that has torch, default python3. Nothing is downloaded, and nothing is installed outside a temporary folder.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
wheels=${1:?error: give the folder of wheels that make gpu-wheels has made}
out=${2:-${OUT:-gpu-results}}
shift $(($# < 2 ? $# : 2))
python=${PYTHON:-python3}
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
"$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())' >&2
"$python" -m pip install -q --no-index --no-deps --disable-pip-version-check --target "$packages" "$wheels"/*.whl
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root"
PYTHONPATH="$packages:$root" DS_BUILD_OPS=0 HF_HUB_OFFLINE=1 "$python" -m benchmarks.gpu --out "$out" "$@"

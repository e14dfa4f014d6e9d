#!/usr/bin/env bash
# Checks serving with vLLM in the environment of `make vllm`, which it makes first: scripts/check_vllm.sh [CKPT]
# Exit code 77, with the reason in words, where that cannot be installed; the other codes are those of check_vllm.py.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
venv=${VLLM_VENV:-.venv-vllm}
if ! make --no-print-directory vllm VLLM_VENV="$venv" PYTHON="${PYTHON:-python3}" >"$log" 2>&1 </dev/null; then
  reason=$(grep -E '^(error|ERROR):' "$log" | tail -n 1)
  echo "skipped: vLLM cannot be installed here: ${reason:-$(tail -n 1 "$log")}"
  exit 77
fi
"$venv/bin/python" scripts/check_vllm.py "$@"

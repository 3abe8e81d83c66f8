#!/usr/bin/env bash
# Builds, tests and measures the CUDA kernels on this machine's GPU, into one JSON file:
#
#   benchmarks/gpu.sh [--quick] [OUT.json]     under 8 minutes, quick: under 3
#   benchmarks/gpu.sh --limit SECONDS ...      1350: time for every step; --only STEP ...: some
#   benchmarks/gpu.sh --dry-run [--limit 540] what it would do, and when; needs no GPU
#
# Needs a Python with torch for CUDA (named by PYTHON, else python3), ninja, nvcc, pytest and hypothesis, and no network.
# See gpu_ops.py for the steps and the exit status.
set -euo pipefail
cd "$(dirname "$0")/.."

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"${PYTHON:-python3}" -c "import torch" || { echo "gpu.sh: PYTHON must name a Python that has torch" >&2; exit 2; }
exec "${PYTHON:-python3}" -m benchmarks.gpu_ops "$@"

#!/usr/bin/env bash
# On every host of a TPU slice or pod of a Kubernetes job: installs into .venv where that is missing, then runs a verb with the others.
#   bash scripts/pod.sh run --config=configs/quickstart.py --workdir=/mnt/segjax/run      EXTRA=cuda installs that extra instead of tpu.
set -euo pipefail
source "$(dirname "$0")/environment.sh" "${EXTRA-tpu}"
exec "$PY" -m segjax "$@" --distributed  # exec: the signal that announces a preemption must reach it

#!/usr/bin/env bash
# A verb on TPU slices of a GKE cluster by xpk, which puts this checkout into an image and restarts the job after an interruption.
#   NAME=segjax TYPE=v5litepod-16 SLICES=1 CLUSTER=... PROJECT=... ZONE=... STORAGE=... \
#     bash scripts/launch_xpk.sh run --config=configs/quickstart.py --workdir=/mnt/segjax/run
# STORAGE: a file share attached to the cluster (`xpk storage attach`, mount point /mnt/segjax). PRINT=1 only prints the command.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${NAME:?}" "${TYPE:?}" "${CLUSTER:?}" "${PROJECT:?}" "${ZONE:?}" "${STORAGE:?}"
source scripts/show.sh
copy="${TMPDIR:-/tmp}/segjax-$NAME"  # what is committed, without environments and runs
run mkdir -p "$copy"
run git archive --format=tar "--output=$copy.tar" HEAD
run tar -xf "$copy.tar" -C "$copy"
run xpk workload create "--workload=$NAME" "--cluster=$CLUSTER" "--project=$PROJECT" "--zone=$ZONE" "--tpu-type=$TYPE" \
  "--num-slices=${SLICES:-1}" "--storage=$STORAGE" "--base-docker-image=${IMAGE:-python:3.12}" "--script-dir=$copy" --max-restarts=50 \
  "--command=bash scripts/pod.sh $(joined "$@")"

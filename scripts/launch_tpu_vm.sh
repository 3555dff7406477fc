#!/usr/bin/env bash
# A verb on every host of a Cloud TPU slice: makes the slice unless it is there, mounts the file share, copies this checkout, runs.
#   NAME=segjax TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite PROJECT=... ZONE=... NFS=10.0.0.2:/share \
#     bash scripts/launch_tpu_vm.sh run --config=configs/quickstart.py --workdir=/mnt/segjax/run
# NFS: a share (Filestore, say) that becomes /mnt/segjax on every host. SPOT=1 for preemptible ones. PRINT=1 only prints the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${NAME:?}" "${TYPE:?}" "${VERSION:?}" "${PROJECT:?}" "${ZONE:?}" "${NFS:?}"
source scripts/show.sh
where=("--project=$PROJECT" "--zone=$ZONE")
on_all() { run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all "--command=$1"; }
if [ -n "${PRINT:-}" ] || ! gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" >/dev/null 2>&1; then
  run gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" "--accelerator-type=$TYPE" "--version=$VERSION" ${SPOT:+--spot}
fi
copy="${TMPDIR:-/tmp}/segjax-$NAME.tar.gz"  # what is committed, without environments and runs
run git archive --format=tar.gz "--output=$copy" HEAD
run gcloud compute tpus tpu-vm scp "$copy" "$NAME:segjax.tar.gz" "${where[@]}" --worker=all
on_all "sudo mkdir -p /mnt/segjax && (mountpoint -q /mnt/segjax || (sudo apt-get install -yq nfs-common && sudo mount -t nfs $NFS /mnt/segjax))"
on_all "mkdir -p segjax && tar -xzf segjax.tar.gz -C segjax"
on_all 'python3 -m pip install --quiet --user uv && ~/.local/bin/uv python install --quiet 3.12'  # the hosts' own Python is older
on_all "cd segjax && PYTHON=\$(~/.local/bin/uv python find 3.12) bash scripts/pod.sh $(joined "$@")"

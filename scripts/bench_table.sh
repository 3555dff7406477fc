#!/usr/bin/env bash
# The table of workloads beside torch, in one run: `bash scripts/bench_table.sh cpu FOLDER [SECONDS]`, `bash scripts/bench_table.sh gpu FOLDER`.
#
# One process a workload, each with a limit of its own, so that a slow compilation or a failure costs its row alone; no workload starts when
# SECONDS (default 3600 for cpu, 360 for gpu) are over. Rows go to FOLDER/bench-cpu.jsonl (bench-gpu.jsonl) as they come, what was printed to
# FOLDER/NUMBER-NAME.log. PYTHON names the Python (default python) of both sides: jax, flax, optax, torch, transformers (SAM, CLIP), diffusers
# (the UNet). On a GPU torch.compile is tried too, and the most important rows come first.
#
# XLA compiles and times many Triton kernels for every product beside cuBLAS's. That presumably is why FDA's six products took 26 s to compile
# on an H100 with 16 cores and ResNet-101's step was not through after 300 s. So cuBLAS alone serves there (XLA_FLAGS of your own win; not
# tried on a GPU yet), and what was chosen is kept in FOLDER/autotune for a second call with the same FOLDER.
#
# CASES=FILE takes other lines, "limit workload [KEY=VALUE ...] [--flag ...]", for a rehearsal with small sizes.
set -u
usage="usage: bench_table.sh cpu|gpu FOLDER [SECONDS]"
kind=${1:?$usage} folder=${2:?$usage}
case $kind in cpu) budget=${3:-3600} ;; gpu) budget=${3:-360} ;; *) echo "$usage" >&2 && exit 2 ;; esac
python=${PYTHON:-python} root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$folder"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=2 PYTHONWARNINGS=ignore PYTHONUNBUFFERED=1
if [ "$kind" = gpu ]; then
    export XLA_FLAGS="${XLA_FLAGS:---xla_gpu_enable_triton_gemm=false --xla_gpu_per_fusion_autotune_cache_dir=$folder/autotune}"
    export JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES=none # else the choices lie beside the programs, in a folder that goes with its process
    mkdir -p "$folder/autotune"
else
    export JAX_PLATFORMS=cpu OMP_WAIT_POLICY=passive # else torch's idle threads take the cores from the other side
fi
export SEGJAX_CACHE="$folder/cache" TORCHINDUCTOR_CACHE_DIR="$folder/inductor" TRITON_CACHE_DIR="$folder/triton"
gpu_cases() {
    cat <<'LINES'
150 deeplab_r101_train batch=8 height=512 width=1024 --against=torch --profile
60 fda batch=8 beta=0.05 --against=torch
60 contrastive pixels=32768 dims=256 precision=high block=1024 --against=torch
60 upsample_ce batch=8 --against=torch
120 enet_train batch=8 height=512 width=1024 --against=torch --profile
90 sam_encoder batch=4 --against=torch
70 clip_encoder batch=64 --against=torch
70 clip_resnet batch=64 --against=torch
120 unet batch=8 --against=torch
60 contrastive pixels=32768 dims=256 precision=highest block=1024 --against=torch
40 contrastive pixels=32768 dims=256 precision=high block=256
40 fda batch=8 beta=0.05 form=fft
120 deeplab_r101_train batch=8 height=512 width=1024 unroll=22
LINES
}
cpu_cases() {
    cat <<'LINES'
300 fda batch=2 height=512 width=1024 --against=torch --chunks=10
300 upsample_ce batch=2 height=512 width=1024 --against=torch --chunks=10
300 contrastive pixels=4096 dims=256 --against=torch --chunks=10
600 enet_train batch=2 height=256 width=512 --against=torch --chunks=6
900 deeplab_r101_train batch=1 height=256 width=512 --against=torch --chunks=5
900 diga_selftrain batch=2 height=128 width=256 --against=torch --chunks=6
300 mit_block stage=1 --against=torch --chunks=8
300 mit_block stage=2 --against=torch --chunks=8
300 mit_block stage=3 --against=torch --chunks=8
300 mit_block stage=4 --against=torch --chunks=8
600 mit_gradients --against=torch --chunks=6
600 sam_encoder image_size=1024 depth=12 --against=torch --chunks=4
300 clip_encoder batch=4 --against=torch --chunks=8
300 clip_resnet batch=4 --against=torch --chunks=8
600 unet side=32 --against=torch --chunks=6
LINES
}
cases=$(if [ -n "${CASES:-}" ]; then cat "$CASES"; else "${kind}_cases"; fi)
begun=$SECONDS number=0
while read -r limit name words <&3; do
    [ -n "$limit" ] || continue
    left=$((budget - (SECONDS - begun))) number=$((number + 1))
    if [ "$left" -lt 15 ]; then
        echo "$name $words: not started, $budget s are over"
        continue
    fi
    flags=()
    for word in $words; do
        case $word in --*) flags+=("$word") ;; *) flags+=(--set "$word") ;; esac
    done
    start=$SECONDS log="$folder/$number-$name.log"
    command=("$python" -m segjax bench --quick --chunks=8 "--workload=$name" "${flags[@]}" "--out=$folder/bench-$kind.jsonl")
    timeout -k 5 "$((limit < left ? limit : left))" "${command[@]}" </dev/null >"$log" 2>&1
    echo "$name $words: exit code $? after $((SECONDS - start)) s"
    grep '^|' "$log" | tail -n +3 | head -1
done 3<<<"$cases"
rm -rf "$folder/cache" "$folder/inductor" "$folder/triton"
echo "$((SECONDS - begun)) s; the table: python -m segjax bench --show=$folder/bench-$kind.jsonl"

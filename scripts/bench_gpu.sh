#!/usr/bin/env bash
# The table of one GPU beside torch.compile, the most important rows first: `bash scripts/bench_gpu.sh FOLDER [SECONDS]`.
#
# One process a workload, each with a limit of its own, so that a slow compilation or a failure costs its row alone; no workload starts when
# SECONDS (default 360) are over. Rows go to FOLDER/bench-gpu.jsonl as they come, what was printed to FOLDER/NAME.log. PYTHON names the Python
# (default python) of both sides: jax with CUDA, flax, optax, torch, transformers (SAM, CLIP) and diffusers (the UNet).
#
# XLA compiles and times many Triton kernels for every product beside cuBLAS's. That presumably is why FDA's six products took 26 s to compile
# on an H100 with 16 cores and ResNet-101's step was not through after 300 s. So cuBLAS alone serves here (XLA_FLAGS of your own win; not
# tried on a GPU yet), and what was chosen is kept in FOLDER/autotune for a second call with the same FOLDER.
#
# CASES=FILE takes other lines, "limit workload [KEY=VALUE ...] [--flag ...]", for a rehearsal with small sizes on a CPU.
set -u
folder=${1:?usage: bench_gpu.sh FOLDER [SECONDS]} budget=${2:-360}
python=${PYTHON:-python} root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$folder"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=2 PYTHONWARNINGS=ignore PYTHONUNBUFFERED=1
export XLA_FLAGS="${XLA_FLAGS:---xla_gpu_enable_triton_gemm=false --xla_gpu_per_fusion_autotune_cache_dir=$folder/autotune}"
export JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES=none # else the choices lie beside the programs, in a folder that goes with its process
mkdir -p "$folder/autotune"
export SEGJAX_CACHE="$folder/cache" TORCHINDUCTOR_CACHE_DIR="$folder/inductor" TRITON_CACHE_DIR="$folder/triton"
cases=$(if [ -n "${CASES:-}" ]; then cat "$CASES"; else cat <<'LINES'
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
fi)
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
    command=("$python" -m segjax bench --quick --chunks=8 "--workload=$name" "${flags[@]}" "--out=$folder/bench-gpu.jsonl")
    timeout -k 5 "$((limit < left ? limit : left))" "${command[@]}" </dev/null >"$log" 2>&1
    echo "$name $words: exit code $? after $((SECONDS - start)) s"
    grep '^|' "$log" | tail -n +3 | head -1
done 3<<<"$cases"
rm -rf "$folder/cache" "$folder/inductor" "$folder/triton"
echo "$((SECONDS - begun)) s; the table: python -m segjax bench --show=$folder/bench-gpu.jsonl"

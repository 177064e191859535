#!/usr/bin/env bash
# What a GPU does with a large model, a row a question, in about six minutes on an H100: seconds of whole commands, and
# ratios to the parts alone. Random weights and noise for images, so that it needs nothing but an installation.
#
#   tests/gpu_check.sh [FOLDER]          writes FOLDER/rows.md (default: out/gpu_check) and a log for each row
#
# MODEL, FRAME, IMAGES, BATCH, DISTIL_BATCH and PRECISION change what is run: MODEL=ViT-B-32 IMAGES=512 tests/gpu_check.sh
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/gpu_check}
model=${MODEL:-ViT-g-14} frame=${FRAME:-open_clip} images=${IMAGES:-2048} precision=${PRECISION:-bf16}
batch=${BATCH:-128} distil_batch=${DISTIL_BATCH:-64}
python=${PYTHON:-.venv/bin/python}
rm -rf "$out" && mkdir -p "$out"
export HF_HUB_OFFLINE=1

"$python" - "$out/images" $((images + 1024)) <<'PY'
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import numpy as np
from PIL import Image

def write(number):
    part = "val" if number % 3 == 0 else "train"
    noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC).save(f"{sys.argv[1]}/{part}/{number:06d}.jpg")

if __name__ == "__main__":
    for part in ("train", "val"):
        Path(sys.argv[1], part).mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(write, range(3 * int(sys.argv[2]) // 2), chunksize=64))
PY

cat > "$out/prune.yaml" <<YAML
model: {frame: $frame, name: $model, precision: $precision}
data: {name: imagefolder, root: $out/images, batch_size: $batch, num_workers: 8, num_samples: $images, num_val_samples: 512}
score: {criterion: reconstruction}
prune: {allocation: global, compensation: ridge, num_calibration_samples: $images, target: {params: 0.6}}
output: {dir: $out/pruning}
YAML
cat > "$out/distil.yaml" <<YAML
teacher: {frame: $frame, name: $model}
student: {pretrained: $out/pruning/pruned}
data: {name: imagefolder, root: $out/images, batch_size: $distil_batch, augment: clip, num_workers: 8}
optim: {base_lr: 2.0e-5, min_lr: 1.0e-7, epochs: 1, warmup_epochs: 0, precision: $([[ $precision == bf16 ]] && echo bf16 || echo fp32)}
output: {dir: $out/distilling}
YAML

row() {  # name, seconds allowed, pattern of the lines that hold the figure, command
    local name=$1 limit=$2 pattern=$3 started=$SECONDS log figure code
    shift 3
    log="$out/${name// /_}.log"
    timeout "$limit" "$@" > "$log" 2>&1
    code=$?
    figure=$(tr '\r' '\n' < "$log" | grep -E -- "$pattern" | tail -n 8 | paste -sd ';' | cut -c1-400)
    echo "| $name | $((SECONDS - started)) s, exit $code | ${figure:-see $log} |" | tee -a "$out/rows.md"
}

score=("$python" main_score.py --config_file "$out/prune.yaml")
prune=("$python" main_prune.py --config_file "$out/prune.yaml")
{
    "$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU", "torch", torch.__version__)'
    echo "$model, $images images, $(date +%F)"
    echo
    echo "| what | seconds of the whole command | figure |"
    echo "|---|---|---|"
} | tee "$out/rows.md"
row "start" 60 "no line" "${score[@]}" --dry_run
row "scoring, planned memory" 60 "GB" "${score[@]}" --dry_run --set score.criterion=entropy
row "scoring by entropy, parts" 60 "takes|ms" "$python" eval/eval_step.py --scoring --num_rounds 5 --config_file "$out/prune.yaml" \
    --set score.criterion=entropy
row "scoring by reconstruction" 120 "so far$|wrote" "${score[@]}"
row "pruning to 60 %" 120 "parameters|FLOPs|wrote" "${prune[@]}"
row "efficiency" 60 "\|" "$python" eval/eval_efficiency.py --model "$out/pruning/pruned" --modes eager compiled --json "$out/efficiency.json"
row "distillation, parts" 90 "takes|ms" "$python" eval/eval_step.py --num_rounds 5 --config_file "$out/distil.yaml"
mkdir -p "$out/searching" && cp "$out/pruning/scores.safetensors" "$out/searching/"
row "exact search, 256 images" 90 "search.*so far|wrote" "${prune[@]}" --set output.dir="$out/searching" --set prune.allocation=search \
    --set prune.compensation=none --set prune.target.params=null --set data.num_val_samples=256 --set prune.store=device
mkdir -p "$out/faster" && cp "$out/pruning/scores.safetensors" "$out/faster/"
row "1.3 times as fast" 90 "fast|seconds|wrote" "${prune[@]}" --set output.dir="$out/faster" --set prune.target.params=null \
    --set prune.target.throughput=1.3

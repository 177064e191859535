#!/usr/bin/env bash
# What a GPU does with a large model, a row a question, in about six minutes on an H100: seconds of whole commands, and
# ratios to the parts alone. Random weights and noise for images, so that it needs nothing but an installation.
#
#   tests/gpu_check.sh [FOLDER]          writes FOLDER/rows.md (default: out/gpu_check) and a log for each row
#
# ROWS, a regular expression, runs those rows alone, in a folder where earlier ones have been run: ROWS='^distil'.
# MODEL, FRAME, IMAGES, BATCH, DISTIL_BATCH and PRECISION change what is run: MODEL=ViT-B-32 IMAGES=512 tests/gpu_check.sh
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/gpu_check}
model=${MODEL:-ViT-g-14} frame=${FRAME:-open_clip} images=${IMAGES:-2048} precision=${PRECISION:-bf16}
batch=${BATCH:-128} distil_batch=${DISTIL_BATCH:-64}
python=${PYTHON:-.venv/bin/python}
[[ -n ${ROWS:-} ]] || rm -rf "$out"
mkdir -p "$out"
export HF_HUB_OFFLINE=1

[[ -d $out/images ]] || "$python" - "$out/images" $((images + 1024)) <<'PY'
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
data: {name: imagefolder, root: $out/images, batch_size: $batch, num_workers: 8, num_samples: $images, num_val_samples: 256}
score: {criterion: reconstruction}
prune: {allocation: global, compensation: sequential, num_calibration_samples: $images, target: {params: 0.6}}
output: {dir: $out/pruning}
YAML
cat > "$out/distil.yaml" <<YAML
teacher: {frame: $frame, name: $model}
student: {pretrained: $out/pruning/pruned}
data: {name: imagefolder, root: $out/images, batch_size: $distil_batch, augment: clip, num_workers: 8}
optim: {base_lr: 2.0e-5, min_lr: 1.0e-7, epochs: 1, warmup_epochs: 0, precision: $([[ $precision == bf16 ]] && echo bf16 || echo fp32)}
output: {dir: $out/distilling, save_every: 16, log_every: 8}
YAML

row() {  # name, seconds allowed, pattern of the lines that hold the figure, how many of the last ones, command
    local name=$1 limit=$2 pattern=$3 lines=$4 started=$SECONDS log figure code
    shift 4
    [[ $name =~ ${ROWS:-} ]] || return
    log="$out/$(tr -cs '[:alnum:]\n' '_' <<< "$name").log"
    timeout "$limit" "$@" > "$log" 2>&1
    code=$?
    figure=$(tr '\r' '\n' < "$log" | grep -E -- "$pattern" | tail -n "$lines" | sed 's/^[| ]*//; s/[| ]*$//' | tr -s ' |' ' ' | paste -sd ';')
    [[ $code == 0 && -n $figure ]] || figure="$figure see $log: $(tail -n 1 "$log" | cut -c1-200)"
    echo "| $name | $((SECONDS - started)) s, exit $code | $figure |" | tee -a "$out/rows.md"
}

score=("$python" main_score.py --config_file "$out/prune.yaml")
prune=("$python" main_prune.py --config_file "$out/prune.yaml")
entropy=(--set score.criterion=entropy)
speed=("$python" eval/eval_efficiency.py --seconds 6)
{
    "$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU", "torch", torch.__version__)'
    echo "$model, $precision, $images images, $(date +%F)"
    echo
    echo "| what | seconds of the whole command | figure |"
    echo "|---|---|---|"
} | tee "$out/rows.md"
row "start: a batch scored by entropy" 60 "^(score|wrote)" 2 "${score[@]}" "${entropy[@]}" --set output.dir="$out/start" --set data.num_samples="$batch"
row "scoring by entropy" 90 "^score" 1 "${score[@]}" "${entropy[@]}" --set output.dir="$out/entropy"
row "its memory as planned" 60 "total" 1 "${score[@]}" "${entropy[@]}" --dry_run
row "its parts" 60 "takes| ms" 4 "$python" eval/eval_step.py --scoring --num_rounds 5 --config_file "$out/prune.yaml" "${entropy[@]}"
row "scoring by entropy, a quarter of the batch at a time" 90 "^score" 1 "${score[@]}" "${entropy[@]}" --set output.dir="$out/parts" \
    --set score.micro_batch=$((batch / 4))
row "its memory as planned, a quarter at a time" 60 "total" 1 "${score[@]}" "${entropy[@]}" --dry_run --set score.micro_batch=$((batch / 4))
row "scoring by reconstruction" 120 "^(score|ranking|wrote)" 3 "${score[@]}"
row "pruning to 60 % of the parameters, refitted" 120 "^.? ?(parameters|FLOPs)|refit:|cosine|wrote" 5 "${prune[@]}"
row "efficiency" 90 "in theory|^. (dense|pruned)" 5 "${speed[@]}" --model "$out/pruning/pruned" --modes eager compiled --json "$out/efficiency.json"
row "distillation, parts" 90 "takes| ms" 5 "$python" eval/eval_step.py --num_rounds 5 --config_file "$out/distil.yaml"
row "distillation, a checkpoint every 16 steps" 90 "img/s|wrote" 4 "$python" distill.py --config_file "$out/distil.yaml"
row "exact search, 256 images" 90 "measurements,|wrote" 2 "${prune[@]}" --set prune.allocation=search \
    --set prune.compensation=none --set prune.target.params=null --set prune.store=device
for target in throughput=1.3 latency=0.8; do
    row "pruning to $target" 90 "measured|note|wrote" 3 "${prune[@]}" --set prune.target.params=null --set prune.target.$target
done
row "the first of these, measured anew" 60 "in theory|^. (dense|pruned)" 3 "${speed[@]}" --model "$out/pruning/throughput-1.3/pruned"

#!/usr/bin/env bash
# Pretraining on the HKH slices, five folds of the competition, the files to hand in. glacier-hand-in.sh HKH DATA
set -euo pipefail
HKH=$1 DATA=$2
GPUS=${GPUS:-2}

python make_folds.py --task glacier --data "$HKH" --out runs/hkh-folds.csv
torchrun --nproc-per-node "$GPUS" -- train.py --config recipes/glacier-pretrain.yaml --data "$HKH" \
  --folds runs/hkh-folds.csv --fold 0 --run glacier-hkh
python make_folds.py --task glacier --data "$DATA"
torchrun --nproc-per-node "$GPUS" -- train.py --config recipes/glacier-finetune.yaml --data "$DATA" \
  --init runs/glacier-hkh --run glacier-ba
python ensemble.py --runs glacier-ba --min-area 100 100 20 --fill-holes 50 --save-blend out/glacier/blend.json \
  --gates target --out out/glacier || [ $? -eq 1 ]  # gates that are missed are told, not fatal
python infer.py --runs glacier-ba --tta hflip vflip rot90 --min-area 100 100 20 --fill-holes 50 --out preds/glacier
python infer.py --runs glacier-ba --min-area 100 100 20 --fill-holes 50 --solution out/glacier/solution

#!/usr/bin/env bash
# 2x2 and 3x3 grids, five folds each, blended on out-of-fold predictions and applied to the test photos.
# Usage: bash recipes/biomass-blend.sh DATA [further options of train.py]
set -euo pipefail
data=$1
shift
python train.py --config recipes/biomass-finetune.yaml --data "$data" --run biomass-2x2 "$@"
python train.py --config recipes/biomass-grid3x3.yaml --data "$data" --run biomass-3x3 "$@"
python ensemble.py --runs biomass-2x2 biomass-3x3 --data "$data" --save-blend out/blend.json
for run in biomass-2x2 biomass-3x3; do
    python infer.py --runs $run --data "$data" --tta hflip vflip swap --out preds/$run
done
python ensemble.py --preds preds/biomass-2x2 preds/biomass-3x3 --blend out/blend.json --data "$data" --out out

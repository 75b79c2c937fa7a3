#!/usr/bin/env bash
# From tiles to a map: folds, training, calibration, the final test, scenes. rts-map.sh DATA SCENES [options of train.py]
# SCENES: a GeoTIFF or a folder of them. RECIPE chooses another recipe than the baseline. A stopped call goes on when it
# is given again.
set -euo pipefail
data=$1 scenes=$2
shift 2

python make_folds.py --task rts --data "$data" --duplicates
begun=$(ls runs/rts/fold*/last.pt 2>/dev/null || true)
python train.py --config "${RECIPE:-recipes/rts-baseline.yaml}" --data "$data" --run rts "$@" ${begun:+--resume}
python ensemble.py --runs rts --gates production --out out/rts || [ $? -eq 1 ]  # missed gates are told, not fatal
python ensemble.py --runs rts --calibrate
# one view, as the out-of-fold predictions that the calibration was fitted on
python infer.py --runs rts --out preds/rts
[ -f runs/rts/final-test.json ] || python ensemble.py --runs rts --final-test preds/rts  # once, and never tuned on
python infer.py --runs rts --scene "$scenes" --min-area 500 --out maps/rts || [ $? -eq 3 ]  # 3: a damaged block

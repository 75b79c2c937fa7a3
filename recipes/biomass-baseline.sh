#!/usr/bin/env bash
# The frozen baseline and its post-processing: Dead is always derived from the total.
# Usage: bash recipes/biomass-baseline.sh DATA [further options of train.py]
set -euo pipefail
data=$1
shift
python train.py --config recipes/biomass-baseline.yaml --data "$data" --run biomass-baseline "$@"
python infer.py --runs biomass-baseline --data "$data" --tta hflip vflip swap --always-correct-dead
python ensemble.py --runs biomass-baseline --data "$data" --always-correct-dead

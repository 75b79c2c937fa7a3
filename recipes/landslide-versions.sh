#!/usr/bin/env bash
# V1, V2 and V2.5 over three seeds, V3 (their mean), and V2.5 without one ingredient at a time, side by side.
# Usage: bash recipes/landslide-versions.sh DATA [small] [further options of train.py]
# small: two folds of short epochs. SEEDS chooses the seeds, ABLATION_SEEDS those
# of the runs without an ingredient: SEEDS="42 123" ABLATION_SEEDS=42 bash …
# A stopped call goes on where it was when it is given again; runs/<version>-s<seed> are its runs.
set -euo pipefail
data=$1
shift
seeds=${SEEDS:-42 123 456}
fewer=${ABLATION_SEEDS:-$seeds}
out=out/landslide-versions
short="" count=""
if [ "${1:-}" = small ]; then
    shift
    count="--folds 2"
    short="--weights none --crop 96 --batch-size 8 --crops-per-epoch 160 --epochs 5 --decoder 64 48 32 24 16
        --lr .002 --ema-decay .9 --workers 0 --samples-every 0"
fi

mkdir -p "$out"
python make_folds.py --task landslide --data "$data" $count --out "$out/folds.csv"  # the data may have others
found=""
train() {  # recipe, name, seed, and what differs
    local recipe=$1 run=$2-s$3 seed=$3 begun
    shift 3
    begun=$(ls runs/"$run"/fold*/last.pt 2>/dev/null || true)
    python train.py --config "recipes/landslide-$recipe.yaml" --data "$data" --folds "$out/folds.csv" --run "$run" \
        --seed "$seed" $short "$@" ${begun:+--resume}
    found="$found $run"
}
for seed in $seeds; do
    for version in v1 v2 v2.5; do train $version $version "$seed" "$@"; done
done
for seed in $fewer; do
    train v2.5 v2.5-resnet50 "$seed" "$@" --encoder resnet50
    train v2.5 v2.5-no-attention "$seed" "$@" --spatial-attention none
    train v2.5 v2.5-no-smote "$seed" "$@" --no-smote
done
# every run without the CRF and with it; V3 is the line "v2.5, mean of 3 seeds + CRF"
python ensemble.py --task landslide --runs $found --data "$data" --compare --crf --out "$out"

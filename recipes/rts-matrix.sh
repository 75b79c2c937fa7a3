#!/usr/bin/env bash
# The experiment matrix: loss, ratio, architecture, labels, bands, fusion, each against the baseline over three seeds.
# Usage: bash recipes/rts-matrix.sh DATA [further options of train.py]
# CELLS chooses among the cells, SEEDS the seeds: CELLS="baseline ratio-20 rts-ndvi" SEEDS="1 2" bash …
# A stopped matrix goes on where it was when it is called again.
set -euo pipefail
data=$1
shift
seeds=${SEEDS:-1 2 3}
cells=${CELLS:-$(ls recipes/rts-matrix | sed 's/\.yaml$//') rts-ndvi rts-dem rts-all-bands rts-late-fusion}

python make_folds.py --task rts --data "$data"
found="" left_out=""
said=$(mktemp)
trap 'rm -f "$said"' EXIT
for cell in $cells; do
    recipe=recipes/rts-matrix/$cell.yaml
    [ -f "$recipe" ] || recipe=recipes/$cell.yaml
    for seed in $seeds; do
        run=rts-matrix-$cell-s$seed
        begun=$(ls runs/"$run"/fold*/last.pt 2>/dev/null || true)
        # a run that collapses says so and the others go on; any other error ends the matrix
        { python train.py --config "$recipe" --data "$data" --seed "$seed" --run "$run" "$@" ${begun:+--resume} \
            2>&1 >&3 | tee "$said" >&2; } 3>&1 || grep -q "^error: collapsed:" "$said"
        if [ -f "runs/$run/post.json" ]; then found="$found $run"; else left_out="$left_out $run"; fi
    done
done
[ -z "$left_out" ] || echo "not compared, without out-of-fold predictions of all folds:$left_out"
[ -n "$found" ] || { echo "error: no run has been finished" >&2; exit 2; }
python ensemble.py --runs $found --data "$data" --compare --out out/rts-matrix
python - <<'END'
import pandas as pd

table = pd.read_csv("out/rts-matrix/compare.csv")
table = table[~table["run"].str.contains(", mean of ")]
cell = table.pop("run").str.replace(r"^rts-matrix-|-s\d+$", "", regex=True).rename("cell")
found = table.groupby(cell).agg(["mean", "std"]).round(4)
found.columns = [name if what == "mean" else f"{name}_spread" for name, what in found.columns]
found = found.sort_values("balanced_iou", ascending=False)
found.to_csv("out/rts-matrix/cells.csv")
shown = ("balanced_iou", "ap_500", "object_precision_500", "object_recall_500")
print(found[[name for name in found if name.removesuffix("_spread") in shown]].to_string())
END

#!/usr/bin/env bash
# From raw rasters to maps: terrain bands, tiles, folds, training, gates, class and susceptibility maps of the whole area.
# Usage: bash recipes/landslide-maps.sh OUT DEM LABELS [options of train.py]
# OUT: folder for the tiles. DEM: elevation. LABELS: raster of the classes 0 1 2. IMAGE, LAND_COVER, AOI (rasters, AOI
# polygons too) are used where they are set; SIDE and STRIDE are those of the tiles, RECIPE another than V2.5.
# On the drawn set: make_folds.py --task landslide --data demo draws it, then
#   IMAGE=demo/rasters/image.tif LAND_COVER=demo/rasters/landcover.tif AOI=demo/rasters/aoi.tif SIDE=128 STRIDE=64 \
#       bash recipes/landslide-maps.sh out/tiles demo/rasters/dem.tif demo/rasters/labels.tif --crop 96 --epochs 2 \
#       --crops-per-epoch 48 --workers 0
# A stopped call goes on when it is given again.
set -euo pipefail
out=$1 dem=$2 labels=$3
shift 3
run=${RUN:-landslide}

if [ ! -f "$out/folds.csv" ]; then
    python make_folds.py --task landslide --data "$out" --dem "$dem" --labels "$labels" ${IMAGE:+--raster $IMAGE} \
        ${LAND_COVER:+--land-cover "$LAND_COVER"} ${AOI:+--aoi "$AOI"} --side "${SIDE:-256}" --stride "${STRIDE:-128}"
fi
begun=$(ls runs/"$run"/fold*/last.pt 2>/dev/null || true)
python train.py --config "${RECIPE:-recipes/landslide-v2.5.yaml}" --data "$out" --run "$run" "$@" ${begun:+--resume}
python ensemble.py --task landslide --runs "$run" --data "$out" --thresholds production --crf --gates production \
    --out "out/$run" || [ $? -eq 1 ]  # missed gates are told, not fatal
python infer.py --task landslide --runs "$run" --data "$out" --scene "$out"/stack/*.tif --thresholds production --crf \
    --susceptibility isotonic --out "maps/$run" || [ $? -eq 3 ]  # 3: a damaged block

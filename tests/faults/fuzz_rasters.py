"""Damaged GeoTIFFs, PNGs, JPEGs, npy, npz and .vrt through every reader of images: python tests/faults/fuzz_rasters.py

--inputs N mutations for each of the readers (default 2000), --seed S, --only NAME …, --out DIR for what was of use and
for the faults (default: a temporary folder). Ends with 1 where there are faults.
"""

import argparse
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
import raster_samples as samples
import rasterio
from fuzz_engine import Target, fuzz, table
from raster_mutations import mutate
from rasterio.warp import Resampling

from common.datasets import glacier_files, hkh, landslide_files, rts_files
from common.datasets.band_tiles import available_bands
from common.datasets.label_grids import read_label
from common.datasets.places import place_of
from common.datasets.prior import open_prior
from common.datasets.raster_layers import Layer, open_classes, values_in
from common.datasets.readers import inpaint_stamp, read_photo
from common.datasets.scenes import open_scene
from common.datasets.tiles import open_slice
from common.outputs.masks import check_mask, holds_logit, read_beside, read_frame, read_logit, read_probs, write_masks

warnings.simplefilter("ignore")
RGB = ("red", "green", "blue")


# photos


def read_photos(folder: Path) -> None:
    for path in folder.iterdir():
        photo = read_photo(path, None)
        assert photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3
        inpaint_stamp(photo)


# tiles and labels of the tasks


def read_glacier(folder: Path) -> None:
    path, mask = folder / "Band1/img_01_02.tif", folder / "label/img_01_02.tif"
    tile = glacier_files.read_tile(path)
    assert tile.dtype == np.float32 and tile.ndim == 3 and np.isfinite(tile).all()
    glacier_files.profile_of(path)
    glacier_files.read_label(mask, glacier_files.label_map([mask], 1))


def read_slices(folder: Path) -> None:
    tile = glacier_files.read_tile(folder / "tile.npy")
    assert tile.dtype == np.float32 and tile.ndim == 3
    mapped, profile = open_slice(folder / "tile.npy"), glacier_files.profile_of(folder / "tile.npy")
    assert mapped.shape[1:] == (profile["height"], profile["width"])
    np.asarray(mapped[:, :8, :8], np.float32)
    glacier_files.read_label(folder / "label.npy", glacier_files.label_map([folder / "label.npy"]))


def read_hkh(folder: Path) -> None:
    rows, statistics = hkh.prepare(folder, folder / "out", progress=False)
    assert len(rows) == statistics["kept"] == 1
    hkh.prepare(folder, folder / "out", progress=False)


def read_rts(folder: Path) -> None:
    path, wanted = folder / "PLANET-RGB/a.tif", (*RGB, "ndvi")
    tile = rts_files.read_tile(path, wanted)
    assert tile.dtype == np.float32 and tile.shape[0] == 4 and np.isfinite(tile).all()
    (text,), _ = rts_files.label_column(folder, [path], "labels", bands=wanted)
    assert read_label(text).shape == tile.shape[1:]
    place_of(path)


def read_landslide(folder: Path) -> None:
    path = next(folder.glob("images/a.*"))
    mask = next(folder.glob("labels/a.*"))
    bands = available_bands(path)
    tile = landslide_files.read_tile(path, bands)
    assert tile.dtype == np.float32 and tile.shape[0] == len(bands) and np.isfinite(tile).all()
    landslide_files.scan(str(path), str(mask), bands)
    landslide_files.read_label(mask, {0: 0, 1: 1, 2: 2})


# scenes


def read_scene(folder: Path) -> None:
    path = folder / "a.tif" if (folder / "a.tif").is_file() and not (folder / "a.vrt").is_file() else folder / "a.vrt"
    with open_scene(path, RGB) as scene:
        found = scene.read(-4, -4, 24, 24)
        assert found.dtype == np.float32 and np.isfinite(found).all()
        scene.read(0, 0, 16, 16, size=(8, 8))


def read_layer(folder: Path) -> None:
    with Layer(folder / "a.tif", folder / "grid.tif", Resampling.bilinear) as layer:
        layer.names()
        assert layer.read(-2, -2, 20, 20).dtype == np.float32
    with open_classes(folder / "a.tif", folder / "grid.tif") as layer:
        values_in(layer, most=300)


def read_prior(folder: Path) -> None:
    with rasterio.open(folder / "grid.tif") as file:
        grid = {"height": file.height, "width": file.width, "crs": file.crs, "transform": file.transform}
    with open_prior(folder / "a.tif", **grid) as prior:
        assert prior.read(0, 0, 16, 16).dtype == np.float32


# masks and predictions


def read_mask(folder: Path) -> None:
    size, _ = read_frame(folder / "source.tif")
    check_mask(folder / "mask.tif", folder / "source.tif", (0, 1))
    mask = np.zeros(size, np.uint8)
    write_masks(folder / "masks", [("a", mask, folder / "source.tif")], values=(0, 85))
    check_mask(folder / "masks/source.tif", folder / "source.tif", (0, 85))


def read_maps(folder: Path) -> None:
    path = folder / "a.npz"
    prob = read_probs(path)
    assert prob.dtype == np.float32 and prob.ndim == 3
    valid = read_beside(path, "valid")
    assert valid.dtype.kind in "buif"
    if holds_logit(path):
        read_logit(path)


def targets() -> list[Target]:
    """Every reader of images, with sound samples of each format that it takes and the files that are damaged."""
    own, one = ("img_01_02.tif",), ("a.tif",)
    return [
        Target("photos", samples.photo_samples(), mutate, read_photos),
        Target("glacier-tif", samples.glacier_samples(), mutate, read_glacier, own),
        Target("slices-npy", samples.slice_samples(), mutate, read_slices),
        Target("hkh-npy", samples.hkh_samples(), mutate, read_hkh),
        Target("rts-tif", samples.rts_samples(), mutate, read_rts),
        Target("landslide", samples.landslide_samples(), mutate, read_landslide),
        Target("scenes-tif", samples.scene_samples(), mutate, read_scene),
        Target("scenes-vrt", samples.vrt_samples(), mutate, read_scene, (".vrt", "a.tif")),
        Target("layers-tif", samples.layer_samples(), mutate, read_layer, one),
        Target("priors-tif", samples.prior_samples(), mutate, read_prior, one),
        Target("masks-tif", samples.mask_samples(), mutate, read_mask),
        Target("maps-npz", samples.map_samples(), mutate, read_maps),
    ]


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=2000, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of readers")
    parser.add_argument("--out", type=Path, help="folder of what was of use, and of faults")
    args = parser.parse_args(argv)
    out = args.out or Path(tempfile.mkdtemp(prefix="fuzz-"))
    chosen = [target for target in targets() if not args.only or target.name in args.only]
    results = []
    for target in chosen:
        print(f"{target.name} …", file=sys.stderr, flush=True)
        results.append(fuzz(target, out, inputs=args.inputs, seed=args.seed))
    for result in results:
        for number, said in result.faults:
            print(f"== {result.name} input {number} ({out / result.name / str(number)}.input)\n{said.strip()}\n")
    print(table(results))
    if args.out is None and not any(result.faults for result in results):
        shutil.rmtree(out)
    return int(any(result.faults for result in results))


if __name__ == "__main__":
    sys.exit(main())

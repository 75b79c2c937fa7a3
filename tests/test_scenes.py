"""Rasters read by window: bands by name, no data, damage, sizes; against the whole array that was written."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from common.datasets.rts_files import read_tile
from common.datasets.scenes import clean, open_scene, resample
from common.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


def write(path, tile, *, names=None, mask=None, **profile):
    """A GeoTIFF of a tile (C,H,W) in blocks of 64."""
    profile = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", **profile}
    place = {"crs": "EPSG:32608", "transform": from_origin(5e5, 7e6, 3, 3)}
    with rasterio.open(path, "w", driver="GTiff", height=tile.shape[1], width=tile.shape[2], count=len(tile),
                       dtype=tile.dtype, **place, **profile) as file:  # fmt: skip
        if names:
            file.descriptions = names  # before the pixels: the directory then comes before them too
        file.write(tile)
        if mask is not None:
            file.write_mask(mask)
    return path


def drawn(bands, height, width, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(1, 200, (bands, height, width)).astype(dtype)


def test_bands_are_found_by_name_in_any_order_and_case(tmp_path):
    tile = drawn(4, 150, 130)
    path = write(tmp_path / "a.tif", tile, names=("NDVI", "Blue", "red", "GREEN"))
    with open_scene(path, ("red", "green", "blue", "ndvi")) as scene:
        assert (scene.height, scene.width) == (150, 130)
        assert scene.crs.to_epsg() == 32608 and scene.transform == from_origin(5e5, 7e6, 3, 3)
        seen = scene.read(20, 30, 100, 70)
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen, tile[[2, 3, 1, 0], 20:120, 30:100])
    with open_scene(path, ("red", "ndvi"), numbers=(2, 4)) as scene:
        np.testing.assert_array_equal(scene.read(0, 0, 150, 130), tile[[1, 3]])


def test_colours_name_bands_without_descriptions_but_alpha_does_not(tmp_path):
    tile = drawn(4, 70, 70)
    path = write(tmp_path / "a.tif", tile, photometric="RGB")
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.alpha]
    with open_scene(path, ("red", "green", "blue")) as scene:
        np.testing.assert_array_equal(scene.read(0, 0, 70, 70), tile[[2, 1, 0]])
    with pytest.raises(InputError, match="no band alpha; there are: 1 blue, 2 green, 3 red, 4 "):
        open_scene(path, ("red", "alpha"))


def test_an_old_label_that_calls_itself_alpha_hides_nothing(tmp_path):
    tile = drawn(4, 70, 70)
    tile[3] = 0
    tile[3, 20:30] = 1
    path = write(tmp_path / "a.tif", tile, photometric="RGB", alpha="yes")
    with open_scene(path, ("red", "green", "blue")) as scene:
        np.testing.assert_array_equal(scene.read(0, 0, 70, 70), tile[:3])
    with open_scene(path, ("mask",), numbers=(4,)) as scene:
        np.testing.assert_array_equal(scene.read(0, 0, 70, 70), tile[3:])


def test_bands_without_names_go_by_order_only_if_there_are_as_many(tmp_path, capsys):
    tile = drawn(4, 70, 70)
    path = write(tmp_path / "a.tif", tile, photometric="MINISBLACK")
    with open_scene(path, ("red", "green", "blue", "ndvi")) as scene:
        np.testing.assert_array_equal(scene.read(0, 0, 70, 70), tile)
    told = capsys.readouterr().out
    assert "a.tif" in told and "red, green, blue, ndvi" in told
    with open_scene(path, ("green", "band4")) as scene:  # as in tiles: the first three, and a band by its number
        np.testing.assert_array_equal(scene.read(0, 0, 70, 70), tile[[1, 3]])
    assert "the first three are taken for red, green, blue" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"a\.tif: no band dem; there are: 1 red, .* 4 \(no name\).*--scene-bands"):
        open_scene(path, ("red", "dem"))


MISSING = {"rgb": (0, 0, 0, 7), "rgb nan": (np.nan, np.nan, np.nan, 7), "rgb nodata": (-9999, -9999, -9999, 7),
           "dem huge": (5, 6, 7, -3.4e38), "dem nan": (5, 6, 7, np.nan), "dem nodata": (5, 6, 7, -9999),
           "dem zero": (5, 6, 7, 0), "one colour": (5, 0, 0, 7), "one nan": (np.nan, 6, 7, 8)}  # fmt: skip


@pytest.mark.parametrize("names", [("red", "green", "blue", "Relative elevation"),
                                   ("Relative elevation", "blue", "green", "red"), None])  # fmt: skip
def test_a_scene_is_read_as_the_tiles_that_the_model_learnt_from(names, tmp_path):
    """The same file in both ways, band for band; where only elevation is asked for, no data is that of the colours."""
    tile = drawn(4, 64, 64, np.float32)
    for row, values in enumerate(MISSING.values()):
        tile[:, row, 10:20] = np.array(values if names is None or names[0] == "red" else values[::-1])[:, None]
    path = write(tmp_path / "a.tif", tile, names=names, nodata=-9999, photometric="MINISBLACK")
    dem = "relative_elevation" if names else "band4"
    for bands in (("red", "green", "blue", dem), (dem, "red"), (dem,)):
        with open_scene(path, bands) as scene:
            seen = scene.read(0, 0, 64, 64)
        np.testing.assert_array_equal(seen, read_tile(path, bands), str(bands))
        elevation, left = seen[bands.index(dem)], dict(zip(MISSING, seen[bands.index(dem), :, 10], strict=False))
        assert left == {name: 7.0 if name == "one colour" else 8.0 if name == "one nan" else 0.0 for name in MISSING}
        np.testing.assert_array_equal(elevation[10:], tile[0 if names and names[0] != "red" else 3, 10:])


def test_bands_by_number_tell_no_data_by_what_they_were_taken_for(tmp_path):
    tile = drawn(4, 64, 64)
    tile[1:, :8], tile[0, :8] = 0, 9
    path = write(tmp_path / "a.tif", tile, names=("a", "b", "c", "d"))
    with open_scene(path, ("red", "green", "blue", "dem"), numbers=(4, 3, 2, 1)) as scene:
        np.testing.assert_array_equal(scene.read(0, 0, 64, 64), tile[::-1] * (tile[1:].any(0)))


def test_what_cannot_be_opened_is_one_line(tmp_path):
    path = write(tmp_path / "a.tif", drawn(3, 70, 70), names=("red", "green", "blue"))
    for numbers, said in (((1, 2), "2 band numbers for 3.*--scene-bands"),
                          ((1, 2, 4), "no band 4; it has the bands 1 to 3: --scene-bands"),
                          ((0, 1, 2), "no band 0")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            open_scene(path, ("red", "green", "blue"), numbers=numbers)
    with pytest.raises(InputError, match="no band ndvi, dem; there are: 1 red, 2 green, 3 blue"):
        open_scene(path, ("red", "ndvi", "dem"))
    with pytest.raises(InputError, match=r"none\.tif: not found"):
        open_scene(tmp_path / "none.tif", ("red",))
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(InputError, match=r"text\.tif: cannot be read"):
        open_scene(tmp_path / "text.tif", ("red",))


def test_beyond_the_edges_there_is_no_data(tmp_path):
    tile = drawn(2, 40, 50)
    path = write(tmp_path / "a.tif", tile, names=("a", "b"))
    expected = np.pad(tile, ((0, 0), (100, 100), (100, 100))).astype(np.float32)
    with open_scene(path, ("a", "b")) as scene:
        for y, x, height, width in ((0, 0, 128, 128), (-10, -7, 64, 64), (30, 45, 20, 20), (-99, 0, 20, 20)):
            seen = scene.read(y, x, height, width)
            np.testing.assert_array_equal(seen, expected[:, y + 100 :, x + 100 :][:, :height, :width])


@pytest.mark.parametrize("nodata", [0, 255])
def test_nodata_of_bytes_counts_where_all_bands_have_it(nodata, tmp_path):
    tile = drawn(3, 64, 64)
    tile[:, :10] = nodata
    tile[1, 30:40] = nodata  # a band that is black or saturated is a value
    path = write(tmp_path / "a.tif", tile, names=("a", "b", "c"), nodata=nodata)
    with open_scene(path, ("a", "b", "c")) as scene:
        seen = scene.read(0, 0, 64, 64)
    assert not seen[:, :10].any()
    np.testing.assert_array_equal(seen[:, 10:], tile[:, 10:])


def test_a_lacking_value_of_one_band_costs_that_band_only(tmp_path):
    tile = drawn(3, 64, 64, np.float32)
    tile[0, 5:9] = np.nan
    tile[1, 7:12] = -9999
    tile[2, 20] = np.inf
    tile[:, 50:] = -9999
    path = write(tmp_path / "a.tif", tile, names=("a", "b", "c"), nodata=-9999)
    with open_scene(path, ("a", "b", "c")) as scene:
        seen = scene.read(0, 0, 64, 64)
    np.testing.assert_array_equal(seen, np.where(np.isfinite(tile) & (tile != -9999), tile, 0))
    integers = drawn(2, 64, 64, np.int16)
    integers[1, :8] = -1
    path = write(tmp_path / "b.tif", integers, names=("a", "b"), nodata=-1)
    with open_scene(path, ("a", "b")) as scene:
        np.testing.assert_array_equal(scene.read(0, 0, 64, 64), np.maximum(integers, 0))


def test_nodata_that_the_type_cannot_hold_marks_nothing():
    tile = np.full((1, 2, 2), 241, np.uint8)
    np.testing.assert_array_equal(clean(tile, (-9999.0,), None), tile)
    lowest = np.float32(np.finfo(np.float32).min)
    assert not clean(np.full((1, 2, 2), lowest), (-3.4028234663852886e38,), None).any()


def test_a_mask_inside_the_file_is_no_data(tmp_path):
    tile, mask = drawn(3, 100, 100), np.full((100, 100), 255, np.uint8)
    mask[40:60, 30:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write(tmp_path / "a.tif", tile, names=("a", "b", "c"), mask=mask)
    with open_scene(path, ("a", "b", "c")) as scene:
        np.testing.assert_array_equal(scene.read(0, 0, 100, 100), tile * (mask > 0))


@pytest.mark.parametrize(("shape", "size"), [((96, 64), (48, 32)), ((90, 90), (60, 36)), ((64, 64), (16, 16))])
def test_a_smaller_picture_is_the_mean_of_the_data(shape, size):
    tile = np.random.default_rng(1).random((2, *shape), np.float32) + 0.5
    tile[:, : shape[0] // 3, : shape[1] // 2] = 0
    expected = np.zeros((2, *size))
    steps = [n / m for n, m in zip(shape, size, strict=True)]
    for i in range(size[0]):
        for j in range(size[1]):
            rows = np.clip(np.minimum(np.arange(shape[0]) + 1, (i + 1) * steps[0])
                           - np.maximum(np.arange(shape[0]), i * steps[0]), 0, 1)  # fmt: skip
            columns = np.clip(np.minimum(np.arange(shape[1]) + 1, (j + 1) * steps[1])
                              - np.maximum(np.arange(shape[1]), j * steps[1]), 0, 1)  # fmt: skip
            area = np.outer(rows, columns) * (tile[0] != 0)
            if area.sum() >= 0.5 * steps[0] * steps[1] - 1e-6:
                expected[:, i, j] = (tile * area).sum((1, 2)) / area.sum()
    np.testing.assert_allclose(resample(tile, size), expected, rtol=1e-4)


def test_reading_at_another_size(tmp_path):
    tile = drawn(2, 100, 100)
    path = write(tmp_path / "a.tif", tile, names=("a", "b"))
    with open_scene(path, ("a", "b")) as scene:
        half = scene.read(50, 0, 100, 100, size=(50, 50))
        double = scene.read(0, 0, 20, 20, size=(40, 40))
    np.testing.assert_allclose(half[:, :25], tile[:, 50:].reshape(2, 25, 2, 50, 2).mean((2, 4)), rtol=1e-5)
    assert not half[:, 25:].any()
    np.testing.assert_allclose(double[:, 0, 0], tile[:, 0, 0])
    near, far = tile[:, 9, 9].astype(float), tile[:, 9, 10].astype(float)
    below, across = tile[:, 10, 9].astype(float), tile[:, 10, 10].astype(float)
    expected = 9 / 16 * near + 3 / 16 * (far + below) + across / 16
    np.testing.assert_allclose(double[:, 19, 19], expected, rtol=1e-5)


def block_offset(path, band, row, column):
    """Where a block's bytes begin and how many there are."""
    with rasterio.open(path) as file:
        tags = [file.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=band) for what in ("OFFSET", "SIZE")]
    return int(tags[0]), int(tags[1])


def damage(path, band, row, column):
    offset, size = block_offset(path, band, row, column)
    with open(path, "rb+") as file:
        file.seek(offset)
        file.write(b"\xff" * size)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_a_damaged_block_costs_that_block(interleave, tmp_path, capsys):
    tile = drawn(3, 200, 210)
    path = write(tmp_path / "a.tif", tile, names=("a", "b", "c"), interleave=interleave)
    damage(path, 2 if interleave == "band" else 1, 1, 2)
    damage(path, 1, 3, 3)
    with open_scene(path, ("a", "b", "c")) as scene:
        seen = [scene.read(y, x, 128, 128) for y in (0, 72, 100) for x in (0, 82, 100)]
        whole = scene.read(0, 0, 200, 210)
        assert scene.damaged == {(1, 2): (64, 128, 64, 64), (3, 3): (192, 192, 8, 18)}
    expected = tile.astype(np.float32)
    expected[:, 64:128, 128:192] = 0
    expected[:, 192:, 192:] = 0
    np.testing.assert_array_equal(whole, expected)
    padded = np.pad(expected, ((0, 0), (0, 128), (0, 128)))
    places = [(y, x) for y in (0, 72, 100) for x in (0, 82, 100)]
    for (y, x), part in zip(places, seen, strict=True):
        np.testing.assert_array_equal(part, padded[:, y : y + 128, x : x + 128])
    lines = [line for line in capsys.readouterr().out.splitlines() if "cannot be read" in line]
    assert len(lines) == 2 and all(str(path) in line for line in lines)
    assert "rows 64 to 127, columns 128 to 191" in lines[0]


def test_a_file_cut_off_keeps_what_came_before(tmp_path):
    tile = drawn(1, 256, 64)
    path = write(tmp_path / "a.tif", tile, names=("a",))
    end = block_offset(path, 1, 2, 0)[0]
    content = path.read_bytes()
    assert all(block_offset(path, 1, row, 0)[0] < end for row in (0, 1))
    path.write_bytes(content[:end])
    with open_scene(path, ("a",)) as scene:
        seen = scene.read(0, 0, 256, 64)
        assert set(scene.damaged) == {(2, 0), (3, 0)}
    np.testing.assert_array_equal(seen[:, :128], tile[:, :128])
    assert not seen[:, 128:].any()


READS = """
import sys; sys.path.insert(0, {root!r})
import resource
from common.datasets import scenes
scenes.CACHE_MB = 16
with scenes.open_scene(sys.argv[1], ("a",)) as scene:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for y in range(0, scene.height, 256):
        scene.read(y, 0, 256, scene.width)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_the_cache_of_blocks_is_bounded(tmp_path):
    """200 MB are read once through a cache of 16; GDAL's own limit is a share of the machine's memory."""
    path = tmp_path / "a.tif"
    profile = {"height": 16384, "width": 3200, "count": 1, "dtype": "float32", "tiled": True, "compress": "deflate"}
    place = {"crs": "EPSG:32608", "transform": from_origin(5e5, 7e6, 3, 3)}
    with rasterio.open(path, "w", driver="GTiff", SPARSE_OK=True, **profile, **place) as file:
        file.descriptions = ("a",)
    code = READS.format(root=str(ROOT))
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 40


def test_real_tiles_with_an_old_mask_as_fourth_band(rts_data):
    """Bands 1 to 3 by name; the fourth, tagged as alpha, neither hides pixels nor is an input."""
    for path in sorted((rts_data / "tiles").glob("*.tif")):
        with rasterio.open(path) as file:
            expected = file.read()
        with open_scene(path, ("blue", "red", "green")) as scene:
            np.testing.assert_array_equal(scene.read(0, 0, scene.height, scene.width), expected[[2, 0, 1]])
        with open_scene(path, ("old",), numbers=(4,)) as scene:
            assert scene.read(0, 0, scene.height, scene.width).max() == expected[3].max()

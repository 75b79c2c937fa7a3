"""Maps of scenes: valid COGs with the values that went in, the same bytes for any strips, nothing half-written."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import from_origin

from common.errors import InputError
from common.outputs.scene_files import write_raster

UTM = CRS.from_epsg(32608)
HIGH, WIDE = 1300, 1112
GRID = {"height": HIGH, "width": WIDE, "crs": UTM, "transform": from_origin(500000, 7600000, 3, 3)}
NAMES = ("slump", "spread")


def scene(seed=0, high=HIGH, wide=WIDE):
    rng = np.random.default_rng(seed)
    values = rng.random((2, high, wide), dtype=np.float32) ** 8
    valid = np.ones((high, wide), bool)
    valid[:, :100] = False
    valid[high // 2 :, wide // 2] = False
    return values, valid


def cut(values, valid, height):
    return lambda: ((y, values[:, y : y + height], valid[y : y + height]) for y in range(0, len(valid), height))


def test_what_went_in_comes_out(tmp_path):
    values, valid = scene()
    path = write_raster(tmp_path / "map.tif", cut(values, valid, 300), names=NAMES, tags={"run": "r1"}, **GRID)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]
    with rasterio.open(path) as file:
        assert (file.crs, file.transform, file.shape) == (UTM, GRID["transform"], (HIGH, WIDE))
        assert file.descriptions == NAMES and file.tags()["run"] == "r1" and np.isnan(file.nodata)
        assert set(file.dtypes) == {"float32"} and file.block_shapes == [(512, 512)] * 2
        assert file.compression.name == "deflate" and file.overviews(1) == file.overviews(2) == [2, 4]
        np.testing.assert_array_equal(file.read(), np.where(valid, values, np.nan))


def test_overviews_are_means_of_what_is_known(tmp_path):
    values, valid = scene()
    path = write_raster(tmp_path / "map.tif", cut(values, valid, 300), names=NAMES, **GRID)
    squares = np.where(valid, values, np.nan).reshape(2, HIGH // 2, 2, WIDE // 2, 2)
    with np.errstate(invalid="ignore"):
        wanted = np.nansum(squares, axis=(2, 4)) / (~np.isnan(squares)).sum(axis=(2, 4))
    with rasterio.open(path, overview_level=0) as file:
        np.testing.assert_allclose(file.read(), wanted, rtol=1e-4)


@pytest.mark.parametrize("size", [(HIGH, WIDE), (700, 300), (90, 120)])
def test_valid_as_cloud_optimised(tmp_path, size):
    rio_cogeo = pytest.importorskip("rio_cogeo")
    values, valid = scene(1, *size)
    grid = GRID | {"height": size[0], "width": size[1]}
    path = write_raster(tmp_path / "map.tif", cut(values, valid, 256), names=NAMES, **grid)
    assert rio_cogeo.cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), np.where(valid, values, np.nan))


def test_any_strips_and_every_run_give_the_same_bytes(tmp_path):
    values, valid = scene()
    made = [write_raster(tmp_path / f"{h}.tif", cut(values, valid, h), names=NAMES, tags={"a": "1", "b": "2"}, **GRID)
            for h in (512, 100, HIGH, 512)]  # fmt: skip
    assert len({path.read_bytes() for path in made}) == 1


@pytest.mark.parametrize("strips", [[], [(0, 700)], [(0, 700), (701, 599)], [(0, 700), (600, 700)], [(0, 1400)]])
def test_strips_that_do_not_fill_the_scene_leave_no_file(tmp_path, strips):
    made = [(y, np.zeros((2, h, WIDE), np.float32), np.ones((h, WIDE), bool)) for y, h in strips]
    with pytest.raises(ValueError, match="does not follow|strips end at row"):
        write_raster(tmp_path / "map.tif", lambda: iter(made), names=NAMES, **GRID)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_file(tmp_path):
    values, valid = scene()
    path = write_raster(tmp_path / "map.tif", cut(values, valid, 300), names=NAMES, **GRID)
    before = path.read_bytes()

    def broken():
        yield next(cut(values, valid, 300)())
        raise InputError("the store is gone")

    with pytest.raises(InputError, match="store is gone"):
        write_raster(path, broken, names=NAMES, **GRID)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line(small_disk):
    values, valid = scene()
    with pytest.raises(InputError, match=r"map\.tif"):
        write_raster(small_disk / "map.tif", cut(values, valid, 300), names=NAMES, **GRID)
    assert not list(small_disk.iterdir())


def test_without_georeference(tmp_path, recwarn):
    values, valid = scene(2, 90, 120)
    grid = {"height": 90, "width": 120, "crs": None, "transform": rasterio.Affine.identity()}
    path = write_raster(tmp_path / "map.tif", cut(values, valid, 50), names=NAMES, tags={"run": "a"}, **grid)
    assert not len(recwarn)
    with rasterio.open(path) as file:
        assert file.crs is None and file.tags()["run"] == "a" and file.shape == (90, 120)


PEAK = """
import resource, sys
import numpy as np
from pathlib import Path
from rasterio.transform import from_origin
from common.outputs.scene_files import write_raster
from common.post.polygons import trace

high, wide = int(sys.argv[2]), 3000

def strips():
    for y in range(0, high, 256):
        h = min(256, high - y)
        values = np.zeros((1, h, wide), np.float32)
        blocks = np.random.default_rng(y).random((1, 5, 50)).astype(np.float32)
        values[:, 20:200, 100:2000] = np.kron(blocks, np.ones((1, 36, 38), np.float32))[:, : max(h - 20, 0)]
        yield y, values, np.ones((h, wide), bool)

grid = {"crs": "EPSG:32608", "transform": from_origin(500000, 7600000, 3, 3)}
write_raster(Path(sys.argv[1]) / "map.tif", strips, height=high, width=wide, names=["prob"], **grid)
trace(((y, values[0] > 0.5, values[0]) for y, values, _ in strips()), min_pixels=30, **grid)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.soak
def test_memory_does_not_grow_with_the_scene(tmp_path):
    def peak(high):
        command = [sys.executable, "-c", PEAK, str(tmp_path), str(high)]
        root = Path(__file__).resolve().parent.parent
        return int(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)

    small, large = peak(2560), peak(15360)
    assert large < small + 100 and large < 800, (small, large)

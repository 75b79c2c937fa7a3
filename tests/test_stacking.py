"""Rasters of several grids as one of named bands: values, warping, no data, metres."""

import functools

import numpy as np
import pytest
import rasterio
from raster_files import ORIGIN, UTM, image, read, write
from rasterio.transform import from_origin

from common.datasets import stacking
from common.datasets.raster_layers import pixel_metres
from common.datasets.stacking import keep_stack, stack_bands
from common.datasets.terrain import TERRAIN, terrain_bands
from common.errors import InputError


def test_a_stack_holds_bands_terrain_and_land_cover_by_name(tmp_path):
    scene = write(tmp_path / "scene.tif", image(), names=["NDVI", "soil moisture"])
    plain = write(tmp_path / "Rain.tif", image(bands=1, seed=2))
    height = 100 + 3 * image(bands=1, seed=3)[0]
    height[20, 30], height[50, 60] = -9999, -3.4028e38
    dem = write(tmp_path / "dem.tif", height, nodata=-9999)
    cover = write(tmp_path / "cover.tif", np.tile(np.array([10, 20, 255], np.uint8), (70, 30)), nodata=255)
    stack = stack_bands(tmp_path / "stack.tif", rasters=[scene, plain], dem=dem, land_cover=cover)
    values, names, place = read(stack)
    assert names == ("ndvi", "soil_moisture", "rain", "elevation", *TERRAIN, "landcover_10", "landcover_20")
    assert np.array_equal(values[:2], image()) and np.array_equal(values[2:3], image(bands=1, seed=2))
    height[[20, 50], [30, 60]] = np.nan
    assert np.array_equal(values[3], height, equal_nan=True)
    want = terrain_bands(height, pixel=(10.0, 10.0))
    for k, name in enumerate(TERRAIN, 4):
        assert np.array_equal(values[k], want[name], equal_nan=True), name
    assert np.array_equal(values[-2], np.tile([1, 0, np.nan], (70, 30)), equal_nan=True)
    assert np.array_equal(values[-1], np.tile([0, 1, np.nan], (70, 30)), equal_nan=True)
    assert place == from_origin(*ORIGIN, 10, 10)


def test_rasters_of_other_grids_are_warped_and_it_is_said(tmp_path, capsys):
    """A ramp keeps its values under bilinear warping; classes stay classes."""
    scene = write(tmp_path / "scene.tif", image())
    x = ORIGIN[0] + 20 * (np.arange(80) + 0.5) - 300
    ramp = write(tmp_path / "ramp.tif", np.tile(x, (70, 1)).astype(np.float32) - 5e5, pixel=20,
                 origin=(ORIGIN[0] - 300, ORIGIN[1] + 300))  # fmt: skip
    cover = write(tmp_path / "cover.tif", np.tile(np.array([3, 7], np.uint8), (40, 15)), pixel=30)
    stack = stack_bands(tmp_path / "stack.tif", rasters=[scene, ramp], land_cover=cover)
    values, names, _ = read(stack)
    assert names == ("scene_1", "scene_2", "ramp", "landcover_3", "landcover_7")
    assert np.allclose(values[2], np.tile(10 * (np.arange(90) + 0.5), (70, 1)), atol=0.01)
    assert np.array_equal(values[3], np.tile(np.repeat([1, 0] * 15, 3), (70, 1)))
    said = capsys.readouterr().out
    assert "ramp.tif: pixels 2 times scene.tif's" in said and "(bilinear)" in said and "(nearest)" in said


def test_what_a_warped_raster_does_not_reach_or_know_is_no_data(tmp_path):
    scene = write(tmp_path / "scene.tif", image())
    part = np.full((20, 20), 7, np.int16)
    part[5:10, 5:10] = -999
    small = write(tmp_path / "small.tif", part, pixel=20, nodata=-999)
    values, *_ = read(stack_bands(tmp_path / "stack.tif", rasters=[scene, small]))
    known = np.zeros((70, 90), bool)
    known[:40, :40] = True
    known[10:20, 10:20] = False
    assert np.array_equal(~np.isnan(values[2]), known)
    assert (values[2][known] == 7).all()


def test_a_list_of_bands_counts_beside_its_raster_only(tmp_path):
    """Tiles cut before have left theirs in the folder above."""
    (tmp_path / "bands.txt").write_text("a\nb\nc\n")
    scene = write(tmp_path / "rasters" / "scene.tif", image())
    assert read(stack_bands(tmp_path / "out" / "s.tif", rasters=[scene]))[1] == ("scene_1", "scene_2")
    first = (tmp_path / "out" / "s.tif").read_bytes()
    stack_bands(tmp_path / "out" / "s.tif", rasters=[scene])
    assert (tmp_path / "out" / "s.tif").read_bytes() == first
    (tmp_path / "rasters" / "bands.txt").write_text("ndvi\nsoil\n")
    assert read(stack_bands(tmp_path / "out" / "s.tif", rasters=[scene]))[1] == ("ndvi", "soil")


def test_scales_and_masks_of_a_file_count(tmp_path):
    path = write(tmp_path / "scaled.tif", np.arange(48, dtype=np.int16).reshape(6, 8))
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = [0.5], [10.0]
        mask = np.full((6, 8), 255, np.uint8)
        mask[2, 3] = 0
        file.write_mask(mask)
    values, *_ = read(stack_bands(tmp_path / "stack.tif", rasters=[path]))
    want = np.arange(48).reshape(6, 8) * 0.5 + 10
    want[2, 3] = np.nan
    assert np.array_equal(values[0], want, equal_nan=True)


def test_land_cover_given_by_value_makes_areas_alike(tmp_path):
    cover = write(tmp_path / "cover.tif", np.full((8, 8), 3, np.uint8))
    values, names, _ = read(stack_bands(tmp_path / "s.tif", land_cover=cover, land_cover_values=[1, 3]))
    assert names == ("landcover_1", "landcover_3")
    assert not values[0].any() and values[1].all()


@pytest.mark.parametrize(
    ("crs", "origin", "pixel", "want"),
    [
        (UTM, ORIGIN, 10.0, (10.0, 10.0)),
        ("EPSG:4326", (77.0, 60.001), 0.001, (111.41, 55.80)),  # a degree: 111 412 m and 55 800 m at 60 N
        ("EPSG:4326", (77.0, 0.001), 0.001, (110.57, 111.32)),
        ("EPSG:2263", (1_000_000.0, 200_000.0), 10.0, (3.048, 3.048)),  # US survey feet
    ],
)
def test_pixels_are_measured_in_metres(tmp_path, crs, origin, pixel, want):
    path = write(tmp_path / "a.tif", np.zeros((2, 2), np.float32), crs=crs, origin=origin, pixel=pixel)
    assert pixel_metres(path) == pytest.approx(want, rel=2e-4)


def test_rows_from_south_to_north_have_the_same_terrain(tmp_path):
    dem = image(bands=1)[0] - 30 * np.indices((70, 90))[0].astype(np.float32)  # no depressions, whose ties would differ
    upright = write(tmp_path / "a.tif", dem)
    turned = tmp_path / "b.tif"
    place = rasterio.Affine(10, 0, ORIGIN[0], 0, 10, ORIGIN[1] - 700)
    with rasterio.open(turned, "w", driver="GTiff", count=1, height=70, width=90, dtype="float32", crs=UTM,
                       transform=place) as file:  # fmt: skip
        file.write(dem[::-1], 1)
    a, names, _ = read(stack_bands(tmp_path / "sa.tif", dem=upright))
    b, _, _ = read(stack_bands(tmp_path / "sb.tif", dem=turned))
    for k, name in enumerate(names):
        assert np.allclose(a[k], b[k, ::-1], atol=2e-3, equal_nan=True), name


def test_a_stack_refuses_what_it_cannot_name_or_place(tmp_path):
    scene = write(tmp_path / "scene.tif", image(20, 20), names=["slope", "b"])
    with pytest.raises(InputError, match="two bands would be named slope"):
        stack_bands(tmp_path / "s.tif", rasters=[scene], dem=write(tmp_path / "d.tif", image(20, 20, 1)))
    with pytest.raises(InputError, match="an elevation model has one"):
        stack_bands(tmp_path / "s.tif", dem=scene)
    with pytest.raises(InputError, match="does not overlap"):
        stack_bands(tmp_path / "s.tif", rasters=[scene, write(tmp_path / "f.tif", image(9, 9), origin=(0.0, 0.0))])
    with pytest.raises(InputError, match="no georeference"):
        stack_bands(tmp_path / "s.tif", rasters=[scene, write(tmp_path / "n.tif", image(9, 9), crs=None)])
    with pytest.raises(InputError, match="more than 64 values"):
        many = write(tmp_path / "m.tif", np.arange(400, dtype=np.uint16).reshape(20, 20))
        stack_bands(tmp_path / "s.tif", rasters=[scene], land_cover=many)
    with pytest.raises(InputError, match="holds 0.5; a raster of classes"):
        half = write(tmp_path / "h.tif", np.full((20, 20), 0.5, np.float32))
        stack_bands(tmp_path / "s.tif", rasters=[scene], land_cover=half)
    with pytest.raises(InputError, match="not found"):
        stack_bands(tmp_path / "s.tif", rasters=[tmp_path / "none.tif"])
    assert not list(tmp_path.glob("*s.tif"))


def test_a_stack_never_replaces_what_it_is_made_from(tmp_path):
    scene, dem = write(tmp_path / "scene.tif", image(20, 20)), write(tmp_path / "dem.tif", image(20, 20, 1))
    (tmp_path / "link.tif").symlink_to(dem)
    before = {path: path.read_bytes() for path in (scene, dem)}
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="would be replaced by the stack of bands"):
        stack_bands(scene, rasters=[scene])
    for out in (dem, tmp_path / "x" / ".." / "dem.tif", tmp_path / "link.tif"):
        with pytest.raises(InputError, match="dem.tif is that file"):
            stack_bands(out, rasters=[scene], dem=dem)
    assert before == {path: path.read_bytes() for path in before}


def test_a_stack_is_made_again_only_where_a_file_changed(tmp_path, monkeypatch, capsys):
    scene, dem = write(tmp_path / "scene.tif", image(20, 20)), write(tmp_path / "dem.tif", image(20, 20, 1))
    made, real = [], stack_bands

    def counted(out, **sources):
        made.append(sources)
        return real(out, **sources)

    monkeypatch.setattr(stacking, "stack_bands", counted)
    keep = functools.partial(keep_stack, tmp_path / "out" / "s.tif", rasters=[scene], dem=dem)
    assert keep() == keep() == tmp_path / "out" / "s.tif" and len(made) == 1
    assert "stacked before from the same files" in capsys.readouterr().out
    write(scene, image(20, 20, seed=8))
    assert np.array_equal(read(keep())[0][:2], image(20, 20, seed=8)) and len(made) == 2
    (tmp_path / "bands.txt").write_text("a\nb\n")
    assert read(keep())[1][:2] == ("a", "b") and len(made) == 3
    (tmp_path / "out" / "s.tif").write_bytes(b"II")
    assert len(read(keep())[1]) > 2 and len(made) == 4
    keep_stack(tmp_path / "out" / "s.tif", rasters=[scene])
    assert len(made) == 5 and keep() and keep() and len(made) == 6

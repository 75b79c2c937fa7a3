"""Priors of other grids and CRS on a scene's grid, against positions worked out by hand; and what they do to a map."""

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import from_bounds, from_origin
from rasterio.warp import transform_bounds
from scipy.special import expit, logit

from common.datasets.prior import MODES, apply_prior, open_prior
from common.errors import InputError

UTM = CRS.from_epsg(32608)
WEST, NORTH = 500000, 7600000
SCENE = {"height": 300, "width": 400, "crs": UTM, "transform": from_origin(WEST, NORTH, 3, 3)}


def write(path, values, transform, crs=UTM, mask=None, scale=None, **facts):
    with rasterio.open(path, "w", driver="GTiff", height=len(values), width=values.shape[1], count=1,
                       dtype=values.dtype, crs=crs, transform=transform, **facts) as file:  # fmt: skip
        file.write(values, 1)
        if mask is not None:
            file.write_mask(mask)
        if scale is not None:
            file.scales = (scale,)
    return path


def ramp(rows, columns):
    return np.tile(np.linspace(0.1, 0.9, columns, dtype=np.float32), (rows, 1))


def test_bilinear_between_the_centres_of_coarser_pixels(tmp_path):
    path = write(tmp_path / "p.tif", ramp(15, 20), from_origin(WEST + 300, NORTH - 300, 30, 30))
    with open_prior(path, **SCENE) as prior:
        got = prior.read(0, 0, 300, 400)
    assert got.dtype == np.float32 and got.shape == (300, 400)
    inside = np.zeros((300, 400), bool)
    inside[100:250, 100:300] = True
    np.testing.assert_array_equal(np.isnan(got), ~inside)
    metres = (np.arange(100, 300) + 0.5) * 3 - 300
    wanted = np.interp(metres, (np.arange(20) + 0.5) * 30, ramp(1, 20)[0])
    np.testing.assert_allclose(got[100:250, 100:300], np.tile(wanted, (150, 1)), atol=1e-5)


def test_strips_are_the_whole(tmp_path):
    rng = np.random.default_rng(0)
    bounds = transform_bounds(UTM, "EPSG:4326", WEST, NORTH - 900, WEST + 1200, NORTH)
    path = write(tmp_path / "p.tif", rng.random((40, 50), dtype=np.float32), from_bounds(*bounds, 50, 40), "EPSG:4326")
    with open_prior(path, **SCENE) as prior:
        parts = [prior.read(y, 0, min(37, 300 - y), 400) for y in range(0, 300, 37)]
        np.testing.assert_array_equal(np.concatenate(parts), prior.read(0, 0, 300, 400))
        with pytest.raises(ValueError, match="leaves the scene"):
            prior.read(290, 0, 20, 400)


def test_another_crs_lands_in_its_place(tmp_path):
    """A prior in degrees that is its own longitude, scaled: what comes out must be that of the scene's pixels."""
    west, south, east, north = transform_bounds(UTM, "EPSG:4326", WEST - 500, NORTH - 1500, WEST + 1700, NORTH + 500)
    columns = (np.arange(200) + 0.5) / 200
    path = write(tmp_path / "p.tif", np.tile(columns.astype(np.float32), (150, 1)),
                 from_bounds(west, south, east, north, 200, 150), "EPSG:4326")  # fmt: skip
    with open_prior(path, **SCENE) as prior:
        got = prior.read(0, 0, 300, 400)
    for y, x in ((0, 0), (299, 399), (150, 20), (7, 380)):
        place = (WEST + 3 * (x + 0.5), NORTH - 3 * (y + 0.5))
        longitude = rasterio.warp.transform(UTM, "EPSG:4326", *[[value] for value in place])[0][0]
        assert abs(got[y, x] - (longitude - west) / (east - west)) < 1e-3


@pytest.mark.parametrize("how", ["mask", "nodata", "nan"])
def test_no_data_is_no_prior(tmp_path, how):
    values, grid = ramp(15, 20), from_origin(WEST, NORTH, 60, 60)
    if how == "mask":
        mask = np.full((15, 20), 255, np.uint8)
        mask[:5] = 0
        path = write(tmp_path / "p.tif", values, grid, mask=mask)
    else:
        values[:5] = np.nan if how == "nan" else -9999
        path = write(tmp_path / "p.tif", values, grid, nodata=None if how == "nan" else -9999)
    with open_prior(path, **SCENE) as prior:
        got = prior.read(0, 0, 300, 400)
    assert np.isnan(got[:90]).all() and np.isfinite(got[111:]).all() and np.nanmin(got) >= 0.1 - 1e-6


def test_scaled_bytes(tmp_path):
    path = write(tmp_path / "p.tif", np.full((30, 40), 60, np.uint8), from_origin(WEST, NORTH, 30, 30), scale=0.005)
    with open_prior(path, **SCENE) as prior:
        np.testing.assert_allclose(prior.read(10, 20, 50, 60), 0.3, atol=1e-6)


def test_what_is_no_prior_of_this_scene(tmp_path):
    grid = from_origin(WEST, NORTH, 30, 30)
    percent = write(tmp_path / "percent.tif", np.full((30, 40), 60, np.uint8), grid)
    below = write(tmp_path / "below.tif", ramp(30, 40) - np.float32(0.2), grid)
    bare = write(tmp_path / "bare.tif", ramp(30, 40), grid, crs=None)
    far = write(tmp_path / "far.tif", ramp(30, 40), from_origin(WEST + 1e5, NORTH, 30, 30))
    pole = write(tmp_path / "pole.tif", ramp(30, 40), from_origin(0, 0, 30, 30), "EPSG:3031")
    empty = write(tmp_path / "empty.tif", np.full((30, 40), -1, np.float32), grid, nodata=-1)
    text = tmp_path / "text.tif"
    text.write_text("no raster")
    absent = tmp_path / "absent.tif"
    for path, message in ((percent, "holds values of 60 to 60; a prior is a probability"), (bare, "has no CRS"),
                          (below, "holds values of -0.1 to 0.7"), (far, "does not overlap the scene"),
                          (pole, "does not overlap|does not reach|cannot be brought"), (empty, "no data where"),
                          (text, "not a readable raster"), (absent, "not a readable raster")):  # fmt: skip
        with pytest.raises(InputError, match=message) as caught:
            open_prior(path, **SCENE)
        assert path.name in str(caught.value)
    fine = write(tmp_path / "fine.tif", ramp(30, 40), grid)
    with pytest.raises(InputError, match="the scene has no CRS"):
        open_prior(fine, **SCENE | {"crs": None})


def test_values_outside_matter_only_where_the_scene_is(tmp_path):
    values = ramp(60, 40)
    values[45:] = 7.0
    path = write(tmp_path / "p.tif", values, from_origin(WEST, NORTH, 30, 30))
    with open_prior(path, **SCENE) as prior:
        assert np.nanmax(prior.read(0, 0, 300, 400)) < 0.91
    with pytest.raises(InputError, match="holds values"):
        open_prior(path, **SCENE | {"height": 600})


def test_limit_and_odds():
    rng = np.random.default_rng(1)
    prob, prior = rng.random((50, 60), dtype=np.float32), rng.random((50, 60), dtype=np.float32)
    prior[:5] = np.nan
    limited = apply_prior(prob, prior, mode="limit", below=0.3)
    np.testing.assert_array_equal(limited, np.where(prior < 0.3, 0, prob))
    assert (limited == 0).mean() > 0.2
    odds = apply_prior(prob, prior, mode="odds")
    known = ~np.isnan(prior)
    wanted = expit(logit(prob[known].astype(float)) + logit(np.clip(prior[known].astype(float), 0.001, 0.999)))
    np.testing.assert_allclose(odds[known], wanted, rtol=1e-4)
    for out in (limited, odds):
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out[:5], prob[:5])
    np.testing.assert_allclose(apply_prior(prob, np.full_like(prob, 0.5), mode="odds"), prob, rtol=1e-6)
    assert set(MODES) == {"limit", "odds"}


def test_odds_at_the_ends():
    prob = np.array([0, 0, 0, 1, 1, 1, 0.5, 0.5], np.float32)
    prior = np.array([0, 1, 0.3, 0, 1, 0.3, 0, 1], np.float32)
    wanted = np.array([0, 0, 0, 1, 1, 1, 0.001, 0.999], np.float32)
    np.testing.assert_allclose(apply_prior(prob, prior, mode="odds"), wanted, rtol=1e-4)
